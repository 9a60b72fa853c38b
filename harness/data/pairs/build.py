"""Build a corpus of pairs once, atomically, and find it again."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.config import DataConfig
from harness.config.checks import IMAGE_KEYS
from harness.data.build import write_meta
from harness.data.corpus import FORMAT
from harness.data.documents import SPLITS, Document
from harness.data.once import META, build_once
from harness.data.overlap import shared_share
from harness.data.pairs import docstrings, instructions
from harness.data.pairs.pair import Pair, PairSplits, remove_shared_pairs
from harness.data.pairs.pair_corpus import SPANS, PairCorpus, load_pairs
from harness.data.sources import hub, python_source
from harness.data.tokenizers import Encoder, check_tokenizer, describe_tokenizer, make_encoder
from harness.errors import UserError

# What changes the pairs of unchanged sources: counted up by hand.
VERSION = 2
_BOUNDARY = "\0"  # between prompt and completion in what is hashed


@dataclasses.dataclass(frozen=True)
class PairSource:
    """A source of pairs; its parts are those of `harness.data.sources.Source`."""

    check: Callable[[DataConfig], None]
    signature: Callable[[DataConfig], object]
    read: Callable[[DataConfig], PairSplits]
    packages: Callable[[DataConfig], dict[str, str]]


def _no_packages(config: DataConfig) -> dict[str, str]:
    return {}


SOURCES = {
    "docstrings": PairSource(
        python_source.check, python_source.signature, docstrings.read, python_source.versions
    ),
    "instructions": PairSource(instructions.check, hub.signature, instructions.read, _no_packages),
}


def check(config: DataConfig, cache: Path | None = None) -> None:
    """Answer what a user can get wrong, before anything heavy is imported.

    Raises:
        UserError: as the source's own check, or that of the tokenizer; data.path where none goes.
    """
    if cache is not None and config.source == "instructions":
        if (_folder(config, cache) / META).exists():
            return  # needs neither files nor a network
    if config.source == "docstrings" and config.path:
        raise UserError(
            f"data.path={config.path!r} is not used by source docstrings; set it to null."
        )
    SOURCES[config.source].check(config)
    check_tokenizer(config)


def prepare(config: DataConfig, cache: Path) -> PairCorpus:
    """The corpus of `config`: opened if it stands in `cache`, else built there.

    Raises:
        UserError: as `check`; or a split is left without pairs.
    """
    check(config, cache)
    final = _folder(config, cache)
    build_once(final, lambda folder: _build(config, folder))
    return load_pairs(final)


def _folder(config: DataConfig, cache: Path) -> Path:
    other = ("name", "tokenizer", *IMAGE_KEYS)
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in other}
    signature = SOURCES[config.source].signature(config)
    parts = [FORMAT, VERSION, fields, signature, describe_tokenizer(config)]
    return cache / hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _build(config: DataConfig, folder: Path) -> None:
    splits, dropped = remove_shared_pairs(SOURCES[config.source].read(config))
    for split in SPLITS:
        if not splits[split]:
            raise UserError(
                f"data {config.name!r} leaves no pairs for the {split} split once what stands in "
                "several splits is removed; give more or more varied data."
            )
        splits[split] = _content_order(splits[split])
    encoder = make_encoder(config, (pair.document.text for pair in splits["train"]))
    own = {split: [pair.own for pair in splits[split]] for split in SPLITS}
    counts: dict[str, Any] = {}
    for split in SPLITS:
        counts[split] = _write(folder, split, splits[split], encoder) | dropped[split]
        if split != "train":
            share = shared_share(own[split], own["train"])
            counts[split]["windows_shared_with_train"] = share
    encoder.save(folder)
    hashed = {split: [_marked(pair) for pair in splits[split]] for split in SPLITS}
    write_meta(folder, config, hashed, encoder, counts, SOURCES[config.source].packages(config))


def _content_order(pairs: Sequence[Pair]) -> list[Pair]:
    """By SHA-256 of the text, so that the first pairs of a split are a fair sample of it."""
    return sorted(pairs, key=lambda pair: hashlib.sha256(_marked(pair).text.encode()).digest())


def _marked(pair: Pair) -> Document:
    return Document(pair.name, pair.prompt + _BOUNDARY + pair.completion)


def _write(folder: Path, split: str, pairs: Sequence[Pair], encoder: Encoder) -> dict[str, int]:
    """The split's arrays: all tokens, and of each pair its start, prompt and whole length.

    Prompt and completion are encoded apart, so that the boundary lies between two tokens, and an
    end of text follows each completion.
    """
    dtype = np.uint16 if encoder.vocab_size <= 2**16 else np.uint32
    prompts = encoder.encode([pair.prompt for pair in pairs])
    completions = encoder.encode([pair.completion for pair in pairs])
    end = np.array([encoder.end_of_text])
    parts = [part for p, c in zip(prompts, completions, strict=True) for part in (p, c, end)]
    before = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    lengths = before + np.array([len(c) + 1 for c in completions], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    tokens = np.concatenate(parts).astype(dtype)
    np.save(folder / f"{split}.npy", tokens)
    np.save(folder / SPANS.format(split), np.stack([starts, before, lengths], axis=1))
    return {
        "documents": len(pairs),
        "bytes": sum(len(pair.document.text.encode()) for pair in pairs),
        "completion_bytes": sum(len(pair.completion.encode()) for pair in pairs),
        "completion_tokens": int((lengths - before).sum()),
        "tokens": len(tokens),
    }
