"""Build a corpus once, atomically, and find it again."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from harness.config import DataConfig
from harness.config.checks import IMAGE_KEYS, PAIR_KEYS
from harness.data.corpus import FORMAT, Corpus, load_corpus
from harness.data.documents import SPLITS, Document, Splits, text_hash
from harness.data.once import META, build_once
from harness.data.overlap import remove_shared, shared_share
from harness.data.sources import find_source
from harness.data.tokenizers import Encoder, check_tokenizer, describe_tokenizer, make_encoder
from harness.errors import UserError

_DOCUMENTS_PER_CALL = 64


def check(config: DataConfig, cache: Path | None = None) -> None:
    """Answer what a user can get wrong, before anything heavy is imported.

    A corpus that is prepared already (given by `path`, or found in `cache`) needs neither its
    packages nor a network and passes.

    Raises:
        UserError: unknown source or tokenizer, missing path or package, unreachable hub id.
    """
    source = find_source(config.source)
    if _prepared(config):
        return
    if config.source == "python_source" and config.path:
        raise UserError(
            f"data.path={config.path!r} is no prepared corpus (it holds no meta.json); "
            "source python_source needs none: set data.path=null."
        )
    if config.source == "hub" and cache is not None and _in_cache(config, cache):
        return
    source.check(config)
    check_tokenizer(config)


def prepare(config: DataConfig, cache: Path, progress: bool = False) -> Corpus:
    """The corpus of `config`: opened if it stands in `cache`, else built there.

    It is built once, see `harness.data.once`.

    Args:
        config: the data group of a run.
        cache: folder that holds prepared corpora.
        progress: show a progress bar on stderr while building.

    Raises:
        UserError: as `check`; or the source has too little text for three splits.
    """
    check(config, cache)
    if _prepared(config):
        return load_corpus(Path(config.path or ""))
    final = cache / _key(config)
    build_once(final, lambda folder: _build(config, folder, progress))
    return load_corpus(final)


def _prepared(config: DataConfig) -> bool:
    folder = Path(config.path or "")
    return bool(config.path) and all((folder / name).is_file() for name in (META, "train.npy"))


def _in_cache(config: DataConfig, cache: Path) -> bool:
    return (cache / _key(config) / META).exists()


def _key(config: DataConfig) -> str:
    """Identity of a build: the config of texts without its name, the source's signature, format."""
    other = ("name", *IMAGE_KEYS, *PAIR_KEYS)
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in other}
    # Local tokenizer files can change while their path stays.
    fields["tokenizer"] = describe_tokenizer(config)
    signature = find_source(config.source).signature(config)
    text = json.dumps([FORMAT, fields, signature], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _build(config: DataConfig, folder: Path, progress: bool) -> None:
    source = find_source(config.source)
    with tqdm(total=4, desc="prepare corpus", unit="stage", disable=not progress) as bar:
        bar.set_postfix_str("reading")
        splits = source.read(config)
        bar.update()
        bar.set_postfix_str("near-duplicates")
        splits = remove_shared(splits)
        _check_not_empty(splits, config)
        bar.update()
        bar.set_postfix_str("tokenizer")
        encoder = make_encoder(config, (d.text for d in splits["train"]))
        bar.update()
        bar.set_postfix_str("tokens")
        _write(folder, config, splits, encoder, progress)
        bar.update()


def _check_not_empty(splits: Splits, config: DataConfig) -> None:
    for split in SPLITS:
        if not splits[split]:
            raise UserError(
                f"data {config.name!r} leaves no text for the {split} split once what stands "
                "in several splits is removed; give more or more varied text."
            )


def _write(
    directory: Path, config: DataConfig, splits: Splits, encoder: Encoder, progress: bool
) -> None:
    dtype = np.uint16 if encoder.vocab_size <= 2**16 else np.uint32
    counts: dict[str, Any] = {}
    for split in SPLITS:
        documents = splits[split]
        tokens = np.concatenate(list(_encode(documents, encoder, split, progress))).astype(dtype)
        np.save(directory / f"{split}.npy", tokens)
        counts[split] = {
            "documents": len(documents),
            "bytes": sum(len(d.text.encode()) for d in documents),
            "tokens": len(tokens),
        }
        if split != "train":
            counts[split]["windows_shared_with_train"] = shared_share(documents, splits["train"])
    encoder.save(directory)
    packages = find_source(config.source).packages(config)
    write_meta(directory, config, splits, encoder, counts, packages)


def write_meta(
    directory: Path,
    config: DataConfig,
    hashed: Splits,
    encoder: Encoder,
    counts: dict[str, Any],
    packages: dict[str, str],
) -> None:
    """What a prepared corpus is: the hash of its text, its tokenizer, sizes, sources, settings."""
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
    (directory / META).write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")


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
