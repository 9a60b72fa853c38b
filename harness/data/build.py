"""Data prepared once: found in the cache by what it rests on, or built there."""

import hashlib
import json
from pathlib import Path
from typing import Protocol

from harness.config import DataConfig
from harness.data import images, pairs, sources, texts
from harness.data.batches import Examples
from harness.data.once import META, build_once
from harness.data.source import Source
from harness.errors import UserError


class Kind(Protocol):
    """How data of one kind is prepared: the files texts.py, pairs.py and images.py.

    `VERSION` is counted up when unchanged sources are prepared in another way. A folder that holds
    meta.json and all of `FILES` can be given as `data.path`.
    """

    VERSION: str
    FILES: tuple[str, ...]

    def check(self, config: DataConfig) -> None:
        """Raises UserError for what of the configuration is this kind's own."""

    def described(self, config: DataConfig) -> object:
        """What decides a prepared folder beside the source's content."""

    def write(self, folder: Path, config: DataConfig, source: Source, progress: bool) -> None:
        """Fill an empty folder; UserError where the source does not give what is needed."""

    def open_folder(self, folder: Path, config: DataConfig) -> Examples:
        """The content of such a folder; UserError where it is damaged."""


def _kind(source: Source) -> Kind:
    kinds: dict[str, Kind] = {"texts": texts, "pairs": pairs, "images": images}
    return kinds[source.kind]


def check(config: DataConfig, cache: Path | None = None) -> None:
    """Answer what a user can get wrong, before anything heavy is imported.

    Data that is prepared already (given by `path`, or a hub id found in `cache`) needs neither its
    packages nor a network and passes.

    Raises:
        UserError: unknown source or tokenizer, missing path or package, unreachable hub id.
    """
    source = sources.find(config.source)
    if _given(config, source):
        return
    if cache is not None and config.path and not Path(config.path).exists():
        if (_folder(config, source, cache) / META).exists():
            return
    source.check(config)
    if config.path and "path" not in source.reads:
        raise UserError(
            f"data.path={config.path!r} is no prepared data (it holds no meta.json); source "
            f"{config.source} needs none: set data.path=null."
        )
    _kind(source).check(config)


def load(config: DataConfig, cache: Path, progress: bool = False) -> Examples:
    """The data of `config`: opened if it stands in `cache`, else built there.

    It is built once, see `harness.data.once`.

    Args:
        config: the data group of a run.
        cache: folder that holds prepared data.
        progress: show a progress bar on stderr while building.

    Raises:
        UserError: as `check`; or the source has too little for three splits.
    """
    check(config, cache)
    source = sources.find(config.source)
    kind = _kind(source)
    if _given(config, source):
        return kind.open_folder(Path(config.path or ""), config)
    final = _folder(config, source, cache)
    build_once(final, lambda folder: kind.write(folder, config, source, progress))
    return kind.open_folder(final, config)


def _given(config: DataConfig, source: Source) -> bool:
    """Whether `path` is a prepared folder."""
    files = _kind(source).FILES
    folder = Path(config.path or "")
    return bool(config.path and files) and all((folder / f).is_file() for f in (META, *files))


def _folder(config: DataConfig, source: Source, cache: Path) -> Path:
    """Named by what the content rests on: the source's settings and state, and the tokenizer."""
    kind = _kind(source)
    settings = {key: getattr(config, key) for key in source.reads}
    parts = [kind.VERSION, config.source, settings, source.signature(config)]
    text = json.dumps([*parts, kind.described(config)], sort_keys=True)
    return cache / hashlib.sha256(text.encode()).hexdigest()[:16]
