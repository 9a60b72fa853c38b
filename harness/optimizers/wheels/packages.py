"""Which published packages there are, and where they are unpacked. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from harness.config.groups import cache_folder

# What they import beside torch and numpy; exact versions seen working with constraints.txt.
LIBRARIES = ("numba==0.68.1", "llvmlite==0.50.0", "ninja==1.13.2")


@dataclass(frozen=True)
class Package:
    """A distribution on PyPI whose import name is `gefen`, and the versions of it that ran here."""

    name: str
    versions: tuple[str, ...]


PACKAGES = {
    "gefen_upstream": Package("gefen", ("1.2.3",)),
    "gefen_x": Package("gefen-x", ("0.5.0", "1.1.1")),
}


def root() -> Path:
    """GEFEN_BENCH_CACHE, else ~/.cache/gefen-bench, and there `published`."""
    return cache_folder() / "published"


def package_folder(package: Package, version: str) -> Path:
    """The folder that holds that version's `gefen`, whether it exists or not."""
    return root() / f"{package.name}-{version}"


def libraries_folder() -> Path:
    """The folder of `LIBRARIES`, which holds nothing that is named as one of our packages."""
    return root() / "libraries"
