"""Batches as pure functions: nothing to save, nothing to restore, the same on every machine."""

from collections.abc import Iterator

import numpy as np


def batch(tokens: np.ndarray, seq_len: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Sequences at random positions, a function of its arguments alone.

    The positions come from raw Philox output (a counter-based generator keyed by `seed` and
    `step`), whose stream NumPy promises to keep; step k needs no knowledge of the steps before it,
    so a resumed run reads what the uninterrupted one would have read.

    Args:
        tokens: shape (n,), any unsigned integer dtype, usually a memory map.
        seq_len: tokens in a sequence, 1 <= seq_len <= n.
        batch_size: number of sequences, drawn with replacement.
        seed: data seed, >= 0.
        step: number of the batch, >= 0.

    Returns:
        shape (batch_size, seq_len), int64.

    Raises:
        ValueError: the split is shorter than one sequence.
    """
    _check_length(tokens, seq_len)
    generator = np.random.Philox(np.random.SeedSequence([seed, step]))
    # The modulo's bias is below n / 2**64: not observable.
    starts = generator.random_raw(batch_size) % np.uint64(len(tokens) - seq_len + 1)
    return np.stack([tokens[int(s) : int(s) + seq_len] for s in starts]).astype(np.int64)


def evaluation_batches(
    tokens: np.ndarray, seq_len: int, batch_size: int, max_tokens: int
) -> Iterator[np.ndarray]:
    """Non-overlapping sequences from the start of a split, in order.

    Args:
        tokens: shape (n,), any unsigned integer dtype.
        seq_len: tokens in a sequence.
        batch_size: sequences in a batch; the last batch may hold fewer.
        max_tokens: upper bound on the tokens read; a rest shorter than `seq_len` is left out.

    Yields:
        arrays of shape (<= batch_size, seq_len), int64.

    Raises:
        ValueError: the split or `max_tokens` is shorter than one sequence.
    """
    _check_length(tokens, seq_len)
    if max_tokens < seq_len:
        raise ValueError(f"max_tokens={max_tokens} is below one sequence of seq_len={seq_len}.")
    sequences = min(len(tokens), max_tokens) // seq_len
    for first in range(0, sequences, batch_size):
        count = min(batch_size, sequences - first)
        flat = tokens[first * seq_len : (first + count) * seq_len]
        yield np.asarray(flat, dtype=np.int64).reshape(count, seq_len)


def _check_length(tokens: np.ndarray, seq_len: int) -> None:
    if seq_len < 1 or len(tokens) < seq_len:
        raise ValueError(
            f"seq_len={seq_len} does not fit: the split holds {len(tokens)} tokens "
            "and seq_len must be between 1 and that number."
        )
