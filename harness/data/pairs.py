"""Prompts with completions: divided, near-duplicates dropped, tokenised once, packed into rows."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.config import DataConfig
from harness.data import texts
from harness.data.batches import Batch, random_order
from harness.data.documents import SPLITS, Document
from harness.data.overlap import Counts, copies, normalised, overlap
from harness.data.packing import arrays, pack
from harness.data.source import Source
from harness.data.texts import Corpus, check_splits, save_tokens, tell, write_meta
from harness.data.tokenizers import Encoder, make_encoder
from harness.errors import UserError

VERSION = "pairs 3"
FILES: tuple[str, ...] = ("train.npy", "train.spans.npy")
_SPANS = "{}.spans.npy"
_BOUNDARY = "\0"  # between prompt and completion in what is hashed
# Characters: a shorter completion (a class label, a number, `return self.name`) is common to pairs
# that have nothing else in common.
LEAST_COMPLETION = 80

check = texts.check
described = texts.described


@dataclass(frozen=True)
class Pair:
    """What stands before, and what is to be learned; neither is empty.

    `values` are the prompt's own parts where the rest of it is a template that all pairs share.
    """

    name: str
    prompt: str
    completion: str
    values: str | None = None

    @property
    def document(self) -> Document:
        """Both as one text."""
        return Document(self.name, self.prompt + self.completion)

    @property
    def own(self) -> Document:
        """As `document`, without the template."""
        text = self.document.text if self.values is None else f"{self.values}\n{self.completion}"
        return Document(self.name, text)


PairSplits = dict[str, list[Pair]]


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
        return np.asarray(np.load(self.directory / _SPANS.format(split)))

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

        A function of its arguments alone; the order is that of `random_order(n, seed, epoch)`.
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
            order = usable[random_order(len(usable), seed, epoch)]
            self._packed[key] = pack(self.spans("train")[:, 2], order, seq_len)
        return self._packed[key]


def open_folder(folder: Path, config: DataConfig) -> PairCorpus:
    """Open a prepared folder; UserError as `harness.data.texts.open_folder`."""
    plain = texts.open_folder(folder, config)
    return PairCorpus(plain.hash, plain.vocab_size, folder, plain.meta)


def write(folder: Path, config: DataConfig, source: Source, progress: bool) -> None:
    """Read, clean, tokenise and describe; UserError where a split is left without pairs."""
    splits, dropped = remove_shared_pairs(source.read(config))
    check_splits(splits, config, "pairs", dropped)
    splits = {split: _content_order(splits[split]) for split in SPLITS}
    encoder = make_encoder(config, (pair.document.text for pair in splits["train"]))
    own = {split: [pair.own for pair in splits[split]] for split in SPLITS}
    counts: dict[str, Any] = {}
    for split in SPLITS:
        counts[split] = _write_split(folder, split, splits[split], encoder) | dropped[split]
        if split != "train":
            counts[split] |= overlap(own[split], own["train"])
    hashed = {split: [_marked(pair) for pair in splits[split]] for split in SPLITS}
    write_meta(folder, config, hashed, encoder, counts, source.packages(config))
    if progress:
        tell(config, counts)


def _content_order(pairs: Sequence[Pair]) -> list[Pair]:
    """By SHA-256 of the text, so that the first pairs of a split are a fair sample of it."""
    return sorted(pairs, key=lambda pair: hashlib.sha256(_marked(pair).text.encode()).digest())


def _marked(pair: Pair) -> Document:
    return Document(pair.name, pair.prompt + _BOUNDARY + pair.completion)


def _write_split(
    folder: Path, split: str, pairs: Sequence[Pair], encoder: Encoder
) -> dict[str, int]:
    """The split's arrays: all tokens, and of each pair its start, prompt and whole length.

    Prompt and completion are encoded apart, so that the boundary lies between two tokens, and an
    end of text follows each completion.
    """
    prompts = encoder.encode([pair.prompt for pair in pairs])
    completions = encoder.encode([pair.completion for pair in pairs])
    end = np.array([encoder.end_of_text])
    parts = [part for p, c in zip(prompts, completions, strict=True) for part in (p, c, end)]
    before = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    lengths = before + np.array([len(c) + 1 for c in completions], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    save_tokens(folder, split, np.concatenate(parts), encoder.vocab_size)
    np.save(folder / _SPANS.format(split), np.stack([starts, before, lengths], axis=1))
    return {
        "documents": len(pairs),
        "bytes": sum(len(pair.document.text.encode()) for pair in pairs),
        "completion_bytes": sum(len(pair.completion.encode()) for pair in pairs),
        "completion_tokens": int((lengths - before).sum()),
        "tokens": int(lengths.sum()),
    }


def remove_shared_pairs(splits: PairSplits) -> tuple[PairSplits, Counts]:
    """Each pair once, and none in train (or test) that mostly stands in a split held out from it.

    Dropped are pairs whose prompt or completion of LEAST_COMPLETION characters or more stands in
    validation (or, for train, in test), whatever its case, spacing and punctuation, and those that
    `harness.data.overlap.copies` finds, the template left out. With the splits: how many pairs of
    each were read, repeated and shared.
    """
    once = {split: _distinct(pairs) for split, pairs in splits.items()}
    validation = once["validation"]
    test = _apart(once["test"], validation)
    train = _apart(once["train"], [*validation, *test])
    kept = {"train": train, "validation": validation, "test": test}
    dropped = {
        split: {
            "read": len(splits[split]),
            "repeated": len(splits[split]) - len(once[split]),
            "shared_with_held_out": len(once[split]) - len(kept[split]),
        }
        for split in kept
    }
    return kept, dropped


def _distinct(pairs: Sequence[Pair]) -> list[Pair]:
    """The first of pairs that are equal but for white space."""
    kept = {(_words(p.prompt), _words(p.completion)): p for p in reversed(pairs)}
    return list(reversed(kept.values()))


def _apart(pairs: list[Pair], others: list[Pair]) -> list[Pair]:
    prompts = {normalised(pair.prompt) for pair in others}
    long = [p.completion for p in others if len(_words(p.completion)) >= LEAST_COMPLETION]
    completions = {normalised(text) for text in long}
    shared = copies([p.own for p in pairs], [p.own for p in others])
    return [
        pair
        for pair, copy in zip(pairs, shared, strict=True)
        if not copy
        and normalised(pair.prompt) not in prompts
        and normalised(pair.completion) not in completions
    ]


def _words(text: str) -> str:
    """The text whatever its white space."""
    return " ".join(text.split())
