"""Where data comes from: one file for each source, found by `DataConfig.source` (see README.md)."""

from harness import registry
from harness.config import DataConfig
from harness.data.source import Source
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
