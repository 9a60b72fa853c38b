"""Texts as tokens: near-duplicates cut, tokenizer trained, one memory-mapped array per split.

A prepared corpus is one folder with meta.json, the tokenizer and the arrays.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from harness.config import DataConfig
from harness.data.batches import Batch, batch, evaluation_batches
from harness.data.documents import SPLITS, Document, Splits, text_hash
from harness.data.once import META
from harness.data.overlap import PASSAGE_WORDS, Counts, overlap, remove_shared
from harness.data.source import Source
from harness.data.tokenizers import (
    Encoder,
    check_tokenizer,
    describe_tokenizer,
    load_encoder,
    make_encoder,
)
from harness.errors import UserError

VERSION = "texts 2"
FILES: tuple[str, ...] = ("train.npy",)
FORMAT = 1  # of meta.json
TOLD_SHARE = 0.01  # of passages in common
_DOCUMENTS_PER_CALL = 64

check = check_tokenizer


def described(config: DataConfig) -> object:
    """The tokenizer, and whether copies of held-out text may have been left out."""
    return [describe_tokenizer(config), config.copies]


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


def open_folder(folder: Path, config: DataConfig) -> Corpus:
    """Open a prepared folder, whatever `config` says.

    Raises:
        UserError: meta.json is of another format, or an array is missing or truncated.
    """
    meta = json.loads((folder / META).read_text())
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{folder}/{META} has format {meta.get('format')!r}; this version reads {FORMAT}."
        )
    corpus = Corpus(meta["hash"], meta["vocab_size"], folder, meta)
    for split in SPLITS:
        expected = meta["splits"][split]["tokens"]
        try:
            found = len(corpus.tokens(split))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}/{split}.npy is missing or damaged.") from error
        if found != expected:
            raise UserError(f"{folder}/{split}.npy holds {found} tokens, not {expected}.")
    return corpus


def write(folder: Path, config: DataConfig, source: Source, progress: bool) -> None:
    """Read, clean, tokenise and describe; UserError where a split is left without text."""
    with tqdm(total=4, desc="prepare corpus", unit="stage", disable=not progress) as bar:
        bar.set_postfix_str("reading")
        splits: Splits = source.read(config)
        bar.update()
        bar.set_postfix_str("near-duplicates")
        splits, removed = remove_shared(splits)
        check_splits(splits, config, "text", removed)
        bar.update()
        bar.set_postfix_str("tokenizer")
        encoder = make_encoder(config, (d.text for d in splits["train"]))
        bar.update()
        bar.set_postfix_str("tokens")
        counts = {
            split: _write_split(folder, split, splits[split], encoder, progress) | removed[split]
            for split in SPLITS
        }
        for split in SPLITS[1:]:
            counts[split] |= overlap(splits[split], splits["train"])
        write_meta(folder, config, splits, encoder, counts, source.packages(config))
        bar.update()
    if progress:
        tell(config, counts)


def check_splits(splits: dict[str, Any], config: DataConfig, what: str, removed: Counts) -> None:
    """UserError where a split is left empty, or copies were found that `data.copies` refuses."""
    for split in SPLITS:
        number = removed[split].get("shared_with_held_out", 0)
        if number and config.copies == "refuse":
            raise UserError(
                f"data {config.name!r}: {number} of the {split} split stand, wholly or in part, in "
                "text that is held out from it; remove them, or set data.copies=drop, which leaves "
                "them out."
            )
        if not splits[split]:
            raise UserError(
                f"data {config.name!r} leaves no {what} for the {split} split once what stands in "
                "several splits is removed; give more or more varied text."
            )


def tell(config: DataConfig, counts: dict[str, Any]) -> None:
    """Say on stderr what was taken out, what could not be checked, and what is still shared."""
    removed = sum(counts[split].get("shared_with_held_out", 0) for split in SPLITS)
    told = [f"{removed} that hold held-out text are cut or left out"] if removed else []
    for split in SPLITS[1:]:
        here, share = counts[split], counts[split]["passages_shared_with_train"]
        short = here["documents_too_short_to_check"]
        if short:
            words = f"have fewer than {PASSAGE_WORDS} words: not checked but for whole copies"
            told.append(f"{short:,} of {here['documents']:,} in {split} {words}")
        if share >= TOLD_SHARE:
            told.append(f"{share:.1%} of the passages of {split} stand in train too")
    if told:
        tqdm.write(f"data {config.name}: {'; '.join(told)}.", file=sys.stderr)


def _write_split(
    folder: Path, split: str, documents: Sequence[Document], encoder: Encoder, progress: bool
) -> dict[str, Any]:
    tokens = np.concatenate(list(_encode(documents, encoder, split, progress)))
    save_tokens(folder, split, tokens, encoder.vocab_size)
    size = sum(len(d.text.encode()) for d in documents)
    return {"documents": len(documents), "bytes": size, "tokens": len(tokens)}


def save_tokens(folder: Path, split: str, tokens: np.ndarray, vocab_size: int) -> None:
    """Write the ids of a split as uint16, as uint32 where the vocabulary is larger than 65,536."""
    dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
    np.save(folder / f"{split}.npy", tokens.astype(dtype))


def write_meta(
    folder: Path,
    config: DataConfig,
    hashed: Splits,
    encoder: Encoder,
    counts: dict[str, Any],
    packages: dict[str, str],
) -> None:
    """Save the tokenizer, and what a prepared corpus is: hash of its text, sizes, settings."""
    encoder.save(folder)
    meta = {
        "format": FORMAT,
        "hash": text_hash(hashed, describe_tokenizer(config)),
        "tokenizer": config.tokenizer,
        "vocab_size": encoder.vocab_size,
        "end_of_text": encoder.end_of_text,
        "splits": counts,
        "packages": packages,
        "config": dataclasses.asdict(config),
    }
    (folder / META).write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")


def _encode(
    documents: Sequence[Document], encoder: Encoder, split: str, progress: bool
) -> Iterator[np.ndarray]:
    """Ids of every document, an end-of-text token after each."""
    end = np.array([encoder.end_of_text], dtype=np.uint32)
    with tqdm(
        total=len(documents), desc=f"encode {split}", unit="doc", leave=False, disable=not progress
    ) as bar:
        for first in range(0, len(documents), _DOCUMENTS_PER_CALL):
            part = documents[first : first + _DOCUMENTS_PER_CALL]
            for ids in encoder.encode([d.text for d in part]):
                yield ids.astype(np.uint32)
                yield end
            bar.update(len(part))
