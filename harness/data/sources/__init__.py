"""Where data comes from: one file for each source, found by `DataConfig.source` (see README.md)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness import registry
from harness.config import DataConfig
from harness.errors import UserError

FOLDER = "data/sources"


def names() -> tuple[str, ...]:
    """The allowed values of `data.source`."""
    return registry.names(FOLDER)


def kind(name: str) -> str:
    """What a source holds: "texts", "pairs" or "images"; imports nothing of it."""
    return str(registry.constant(FOLDER, name, "KIND"))


def _no_packages(config: DataConfig) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Source:
    """A data source: the constants and functions of its file.

    Attributes:
        kind: what it holds, see `kind`.
        reads: keys of DataConfig that decide its content, those of the tokenizer left out.
        check: raises UserError for what can be known cheaply.
        signature: describes the present content cheaply (versions, sizes and times), so that a
            changed source is built again.
        read: of texts gives Splits, of pairs PairSplits, of images Pixels.
        packages: the wheels that the content comes from, with their versions.
    """

    kind: str
    reads: frozenset[str]
    check: Callable[[DataConfig], None]
    signature: Callable[[DataConfig], object]
    read: Callable[[DataConfig], Any]
    packages: Callable[[DataConfig], dict[str, str]]


def find(name: str) -> Source:
    """The source called `name`.

    Raises:
        UserError: there is no such source.
    """
    if name not in names():
        raise UserError(f"data.source={name!r} is unknown; allowed: {', '.join(names())}.")
    file = registry.module(FOLDER, name)
    packages = getattr(file, "packages", _no_packages)
    return Source(file.KIND, file.READS, file.check, file.signature, file.read, packages)
