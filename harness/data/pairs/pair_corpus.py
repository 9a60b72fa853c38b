"""A prepared corpus of pairs: that of texts, and where each pair's prompt and completion lie."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from harness.data.corpus import Corpus, load_corpus
from harness.data.examples import Batch
from harness.data.pairs.packing import arrays, pack
from harness.errors import UserError

SPANS = "{}.spans.npy"


@dataclass(frozen=True)
class PairCorpus(Corpus):
    """Pairs of three splits, packed into sequences; losses and bytes are those of completions.

    Pairs longer than a sequence are left out. A batch has the arrays of `packing.arrays`.
    """

    _packed: dict[tuple[int, int, int], list[list[int]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def spans(self, split: str) -> np.ndarray:
        """Start, prompt tokens and all tokens of each pair, shape (pairs, 3), int64."""
        self._counts(split)
        return np.asarray(np.load(self.directory / SPANS.format(split)))

    def bytes_per_token(self, split: str) -> float:
        """UTF-8 bytes of completions over their tokens, the end of text among these."""
        counts = self._counts(split)
        return float(counts["completion_bytes"]) / float(counts["completion_tokens"])

    def fitting(self, split: str, seq_len: int) -> np.ndarray:
        """The pairs that fit into a sequence, by index, in order.

        Raises:
            UserError: none does.
        """
        spans = self.spans(split)
        usable = (spans[:, 2] <= seq_len) & (spans[:, 1] > 0)
        if not usable.any():
            shortest = int(spans[:, 2].min())
            raise UserError(
                f"seq_len={seq_len} is below every pair of the {split} split; the shortest has "
                f"{shortest} tokens."
            )
        return np.flatnonzero(usable)

    def examples(self, split: str, seq_len: int) -> int:
        """Packed sequences of `seq_len` tokens in a split."""
        return len(self.rows(split, seq_len))

    def rows(self, split: str, seq_len: int) -> list[list[int]]:
        """The pairs of each sequence of a split in its own order, as evaluations read it."""
        return pack(self.spans(split)[:, 2], self.fitting(split, seq_len), seq_len)

    def batch(self, seq_len: int, size: int, seed: int, step: int) -> Batch:
        """`size` training sequences; every pair once an epoch, shuffled and packed anew in each.

        A function of its arguments alone: the order comes from raw Philox output keyed by `seed`
        and the epoch, as in `harness.data.batches`.
        """
        rows = [self._row(seq_len, seed, step * size + index) for index in range(size)]
        return arrays(self.tokens("train"), self.spans("train"), rows, seq_len, self._end)

    def evaluation_batches(
        self, split: str, seq_len: int, size: int, max_tokens: int
    ) -> Iterator[Batch]:
        """The first `max_tokens` tokens of a split, packed in its own order."""
        rows = self.rows(split, seq_len)[: max_tokens // seq_len]
        tokens, spans = self.tokens(split), self.spans(split)
        for first in range(0, len(rows), size):
            yield arrays(tokens, spans, rows[first : first + size], seq_len, self._end)

    def pair(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of a prompt and of its completion without the end of text, each (n,)."""
        start, prompt, length = (int(value) for value in self.spans(split)[index])
        ids = np.asarray(self.tokens(split)[start : start + length - 1], dtype=np.int64)
        return ids[:prompt], ids[prompt:]

    @property
    def _end(self) -> int:
        return int(self.meta["end_of_text"])

    def _row(self, seq_len: int, seed: int, number: int) -> list[int]:
        """Row `number`, counted through the epochs, whose packings differ in length."""
        epoch = 0
        while number >= len(packed := self._epoch(seq_len, seed, epoch)):
            number, epoch = number - len(packed), epoch + 1
        return packed[number]

    def _epoch(self, seq_len: int, seed: int, epoch: int) -> list[list[int]]:
        key = (seq_len, seed, epoch)
        if key not in self._packed:
            usable = self.fitting("train", seq_len)
            generator = np.random.Philox(np.random.SeedSequence([seed, epoch]))
            order = usable[np.argsort(generator.random_raw(len(usable)), kind="stable")]
            self._packed[key] = pack(self.spans("train")[:, 2], order, seq_len)
        return self._packed[key]


def load_pairs(directory: Path) -> PairCorpus:
    """Open a prepared folder.

    Raises:
        UserError: as `harness.data.corpus.load_corpus`.
    """
    plain = load_corpus(directory)
    return PairCorpus(plain.hash, plain.vocab_size, directory, plain.meta)
