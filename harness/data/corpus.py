"""A prepared corpus: one folder with meta.json, the tokenizer and one token array per split."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.batches import batch, evaluation_batches
from harness.data.documents import SPLITS
from harness.data.examples import Batch
from harness.data.tokenizers import load_encoder
from harness.errors import UserError

FORMAT = 1


@dataclass(frozen=True)
class Corpus:
    """Tokens of three splits.

    Attributes:
        hash: SHA-256 of the texts and the tokenizer's description, in hex.
        vocab_size: number of token ids.
        directory: the folder; copy it to use the corpus on another machine.
        meta: content of meta.json (counts of each split, packages, shared windows).
    """

    hash: str
    vocab_size: int
    directory: Path
    meta: dict[str, Any] = field(repr=False)

    def tokens(self, split: str) -> np.ndarray:
        """Memory-mapped ids of `split`, shape (n,), uint16 (uint32 for vocabularies > 65,536)."""
        self._counts(split)
        return np.asanyarray(np.load(self.directory / f"{split}.npy", mmap_mode="r"))

    def bytes_per_token(self, split: str) -> float:
        """UTF-8 bytes of text over tokens; bits per byte = loss / ln 2 / this."""
        counts = self._counts(split)
        return float(counts["bytes"]) / float(counts["tokens"])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`."""
        return load_encoder(self.directory, self.meta["tokenizer"]).decode([int(i) for i in ids])

    def divided(self, seed: int) -> "Corpus":
        """Itself: whole documents were held out when it was built."""
        return self

    def examples(self, split: str, seq_len: int) -> int:
        """Whole sequences of `seq_len` tokens in a split."""
        return len(self.tokens(split)) // seq_len

    def batch(self, seq_len: int, size: int, seed: int, step: int) -> Batch:
        """Token ids of the training split as inputs and labels, see `harness.data.batches`."""
        return _causal(batch(self.tokens("train"), seq_len, size, seed, step))

    def evaluation_batches(
        self, split: str, seq_len: int, size: int, max_tokens: int
    ) -> Iterator[Batch]:
        """The first `max_tokens` tokens of a split, see `harness.data.batches`."""
        return map(_causal, evaluation_batches(self.tokens(split), seq_len, size, max_tokens))

    def _counts(self, split: str) -> dict[str, Any]:
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is unknown; allowed: {', '.join(SPLITS)}.")
        counts: dict[str, Any] = self.meta["splits"][split]
        return counts


def _causal(ids: np.ndarray) -> Batch:
    # transformers shifts the labels by one position itself.
    return {"input_ids": ids, "labels": ids}


def load_corpus(directory: Path) -> Corpus:
    """Open a prepared folder.

    Raises:
        UserError: meta.json is of another format, or an array is missing or truncated.
    """
    meta = json.loads((directory / "meta.json").read_text())
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{directory}/meta.json has format {meta.get('format')!r}; this version reads {FORMAT}."
        )
    corpus = Corpus(meta["hash"], meta["vocab_size"], directory, meta)
    for split in SPLITS:
        expected = meta["splits"][split]["tokens"]
        try:
            found = len(corpus.tokens(split))
        except (OSError, ValueError) as error:
            raise UserError(f"{directory}/{split}.npy is missing or damaged.") from error
        if found != expected:
            raise UserError(f"{directory}/{split}.npy holds {found} tokens, not {expected}.")
    return corpus
