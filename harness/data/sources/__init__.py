"""Where text comes from: one file for each source, found by `DataConfig.source`."""

from collections.abc import Callable
from dataclasses import dataclass

from harness.config import DataConfig
from harness.data.documents import Splits
from harness.data.sources import hub, python_source, text_files
from harness.errors import UserError


@dataclass(frozen=True)
class Source:
    """A data source.

    `check` raises UserError for what can be known cheaply; `signature` describes the present
    content cheaply (versions, sizes and times), so that a changed source is built again; `read`
    returns the documents of each split; `packages` the wheels and versions the text comes from.
    """

    check: Callable[[DataConfig], None]
    signature: Callable[[DataConfig], object]
    read: Callable[[DataConfig], Splits]
    packages: Callable[[DataConfig], dict[str, str]]


def _no_packages(config: DataConfig) -> dict[str, str]:
    return {}


def find_source(name: str) -> Source:
    """The source called `name`.

    Raises:
        UserError: there is no such source.
    """
    sources = {
        "python_source": Source(
            python_source.check,
            python_source.signature,
            python_source.read,
            python_source.versions,
        ),
        "text_files": Source(text_files.check, text_files.signature, text_files.read, _no_packages),
        "hub": Source(hub.check, hub.signature, hub.read, _no_packages),
    }
    if name not in sources:
        raise UserError(f"data.source={name!r} is unknown; allowed: {', '.join(sources)}.")
    return sources[name]
