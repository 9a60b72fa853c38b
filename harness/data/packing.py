"""Several pairs in one sequence: who shares a row, and the arrays that a model gets."""

from collections.abc import Sequence

import numpy as np

from harness.data.batches import Batch

IGNORED = -100  # the label that torch.nn.functional.cross_entropy leaves out
OPEN_ROWS = 64  # a bound on the search, and on how far packing moves a pair from its place


def pack(lengths: np.ndarray, order: Sequence[int] | np.ndarray, seq_len: int) -> list[list[int]]:
    """First fit: each pair into the first open row that has room, else into a new one.

    Args:
        lengths: tokens of each pair, shape (n,).
        order: the pairs to pack, by index, each at most `seq_len` long.
        seq_len: tokens of a row.

    Returns:
        The pairs of each row; a row stands where its first pair stood in `order`.
    """
    rows: list[list[int]] = []
    room: dict[int, int] = {}  # of the open rows, oldest first
    for index in order:
        length = int(lengths[index])
        row = next((number for number, left in room.items() if left >= length), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room[row] = seq_len
            if len(room) > OPEN_ROWS:  # the fullest one is closed: never the new one
                del room[min(room, key=room.__getitem__)]
        rows[row].append(int(index))
        room[row] -= length
    return rows


def arrays(
    tokens: np.ndarray,
    spans: np.ndarray,
    rows: Sequence[Sequence[int]],
    seq_len: int,
    end_of_text: int,
) -> Batch:
    """The rows as inputs of a decoder, each array of shape (len(rows), seq_len), int64.

    Positions start at 0 in each pair, from which transformers builds a block-diagonal causal mask:
    no token sees another pair. Labels are the tokens of the completions and IGNORED elsewhere, also
    in the padding behind the last pair, which is a segment of its own. A pair begins with a prompt,
    so that no completion is predicted from the pair before.

    Args:
        tokens: all tokens of a split, shape (n,).
        spans: of each pair where it starts in `tokens`, the tokens of its prompt, and all of its
            tokens, shape (pairs, 3), int64.
        rows: indices into `spans`.
    """
    shape = (len(rows), seq_len)
    ids = np.full(shape, end_of_text, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    for row, members in enumerate(rows):
        filled = 0
        for index in members:
            start, prompt, length = (int(value) for value in spans[index])
            here = slice(filled, filled + length)
            ids[row, here] = tokens[start : start + length]
            positions[row, here] = np.arange(length)
            labels[row, filled + prompt : filled + length] = ids[row, filled + prompt : here.stop]
            filled += length
        positions[row, filled:] = np.arange(seq_len - filled)
    return {"input_ids": ids, "position_ids": positions, "labels": labels}
