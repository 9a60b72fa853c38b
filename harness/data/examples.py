"""What a run needs of its data, whatever that is: texts, or labelled images."""

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
