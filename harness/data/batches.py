"""What a run needs of its data, whatever that is, and batches of a long array of tokens.

Batches are pure functions: nothing to save, nothing to restore, the same on every machine.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

Batch = dict[str, np.ndarray]  # keyword arguments of a transformers model, its labels among them


class Examples(Protocol):
    """Data of three splits in batches that are pure functions of their arguments.

    `hash` stands for the content, `vocab_size` for how many outputs the model needs: token ids, or
    classes. Sequences are counted in `seq_len` tokens, of which an image has one a patch.
    """

    @property
    def hash(self) -> str:
        """SHA-256 of the content, in hex."""

    @property
    def vocab_size(self) -> int:
        """Token ids, or classes."""

    def divided(self, seed: int) -> "Examples":
        """As a run with this data seed reads it."""

    def examples(self, split: str, seq_len: int) -> int:
        """Whole sequences, or images, in a split."""

    def batch(self, seq_len: int, size: int, seed: int, step: int) -> Batch:
        """`size` training examples; `step` numbers the batches."""

    def evaluation_batches(
        self, split: str, seq_len: int, size: int, max_tokens: int
    ) -> Iterator[Batch]:
        """The first examples of a split, as many as `max_tokens` holds, in order."""


def random_order(count: int, *key: int) -> np.ndarray:
    """A permutation of range(count), int64, a function of its arguments alone.

    It comes from raw Philox output (a counter-based generator keyed by `key`), whose stream NumPy
    promises to keep.
    """
    drawn = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(drawn, kind="stable")


def batch(tokens: np.ndarray, seq_len: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Sequences at random positions, a function of its arguments alone.

    The positions come from raw Philox output, as in `random_order`, keyed by `seed` and `step`;
    step k needs no knowledge of the steps before it, so a resumed run reads what the uninterrupted
    one would have read.

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
