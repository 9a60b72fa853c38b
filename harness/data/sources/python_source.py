"""Python files of installed pure-Python wheels: real text without a network.

The files are those that the wheel's RECORD lists, so that pinned versions give the same bytes on
every machine. Whole packages are held out for validation and for test.
"""

import fnmatch
import hashlib
import re
from importlib import metadata

from harness.config import DataConfig
from harness.data.documents import SPLITS, Document, Splits, content_order
from harness.errors import UserError

KIND = "texts"
READS = frozenset({"train", "validation", "test", "exclude", "max_package_bytes"})

# Longer lines are data (tables, embedded JSON), not code.
_MAX_LINE_CHARACTERS = 1000


def check(config: DataConfig) -> None:
    """Every split names packages, none twice, each installed as a pure-Python wheel.

    Raises:
        UserError: one of these does not hold.
    """
    seen: dict[str, str] = {}
    for split in SPLITS:
        names = getattr(config, split)
        if not names:
            raise UserError(
                f"data.{split} is empty; source python_source needs at least one package there."
            )
        for package in names:
            key = re.sub(r"[-_.]+", "-", package).lower()
            if key in seen:
                raise UserError(
                    f"data.{split} names {package!r}, which data.{seen[key]} names too; "
                    "a package belongs to one place in one split."
                )
            seen[key] = split
            _distribution(package, split)


def signature(config: DataConfig) -> object:
    """Names and versions: with a RECORD they determine the text."""
    return packages(config)


def packages(config: DataConfig) -> dict[str, str]:
    """Package -> installed version, over all splits."""
    return {
        package: _distribution(package, split).version
        for split in SPLITS
        for package in getattr(config, split)
    }


def read(config: DataConfig) -> Splits:
    """The documents of each split in content order.

    Raises:
        UserError: a split ends up without text.
    """
    splits: Splits = {}
    for split in SPLITS:
        documents: list[Document] = []
        for package in getattr(config, split):
            documents += _package_documents(package, split, config)
        if not documents:
            raise UserError(
                f"data.{split}={getattr(config, split)} gives no text; "
                "name packages with Python files or shorten data.exclude."
            )
        splits[split] = content_order(documents)
    return splits


def _package_documents(package: str, split: str, config: DataConfig) -> list[Document]:
    """Up to `max_package_bytes` of a package, files taken in the order of their path's hash."""
    limit = config.max_package_bytes
    documents: list[Document] = []
    used = 0
    files = _distribution(package, split).files or []
    # Entries that start with ".." are console scripts; compiled files are no text.
    paths = {f.as_posix(): f for f in files if f.suffix == ".py" and f.parts[0] != ".."}
    for name in sorted(paths, key=lambda path: hashlib.sha256(path.encode()).digest()):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in config.exclude):
            continue
        data = _file_bytes(paths[name], package, name)
        if not _is_code(data) or (limit is not None and used + len(data) > limit):
            continue
        used += len(data)
        documents.append(Document(name, data.decode()))
    return documents


def _file_bytes(path: metadata.PackagePath, package: str, name: str) -> bytes:
    try:
        return bytes(path.locate().read_bytes())  # type: ignore[attr-defined]
    except OSError as error:
        raise UserError(
            f"{name} of package {package!r} cannot be read ({error.strerror}); "
            f"reinstall it: pip install --force-reinstall --no-deps {package}."
        ) from error


def _is_code(data: bytes) -> bool:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return bool(text.strip()) and max(map(len, text.split("\n"))) <= _MAX_LINE_CHARACTERS


def _distribution(package: str, split: str) -> metadata.Distribution:
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"data.{split} names {package!r}, which is not installed; "
            f"pip install {package} or take it out."
        ) from error
    if not found.read_text("RECORD"):
        raise UserError(
            f"data.{split} names {package!r}, whose installation has no RECORD; "
            "install it from a wheel."
        )
    wheel = found.read_text("WHEEL") or ""
    tags = re.findall(r"^Tag: (.+)$", wheel, flags=re.MULTILINE)
    if any(not tag.endswith("-none-any") for tag in tags):
        raise UserError(
            f"data.{split} names {package!r}, which is not a pure-Python wheel "
            f"(its tag is {tags[0]}); its text would differ between machines."
        )
    return found
