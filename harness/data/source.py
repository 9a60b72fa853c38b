"""What a data source is: the constants and functions of its file in `sources/`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.config import DataConfig


@dataclass(frozen=True)
class Source:
    """A data source: the constants and functions of its file.

    Attributes:
        kind: what it holds, texts, pairs or images.
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
