"""Near-duplicates across splits: windows of five stripped non-blank lines.

Code is copied between packages and between files of one package. A held-out loss is only worth
something if the held-out text does not stand in the training text, so what both hold is cut from
training (and from test, where validation holds it).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.data.documents import Document, Splits

WINDOW_LINES = 5
_MAX_REPEATED_SHARE = 0.5
_CUTS = 4


@dataclass(frozen=True)
class _Windows:
    """All windows of a split: `key` uint64 (n,), `document` int64 (n,), `line` int64 (n,)."""

    key: np.ndarray
    document: np.ndarray
    line: np.ndarray


def remove_shared(splits: Splits) -> Splits:
    """Cut shared windows from train and test, and drop training documents that mostly repeat.

    A training document is dropped when more than half of its windows stand in earlier training
    documents: model zoos hold many near-copies of one file.
    """
    names: dict[str, int] = {}
    test = _cut(splits["test"], splits["validation"], names)
    train = _drop_repeats(splits["train"], names)
    train = _cut(train, [*splits["validation"], *test], names)
    return {"train": train, "validation": splits["validation"], "test": test}


def shared_share(documents: Sequence[Document], others: Sequence[Document]) -> float:
    """Share (0..1) of the windows of `documents` that stand anywhere in `others`."""
    names: dict[str, int] = {}
    own, other = _windows(documents, names), _windows(others, names)
    return float(np.isin(own.key, other.key).mean()) if len(own.key) else 0.0


def sharing(documents: Sequence[Document], others: Sequence[Document]) -> list[bool]:
    """Which of `documents` have a window that stands anywhere in `others`."""
    names: dict[str, int] = {}
    own, other = _windows(documents, names), _windows(others, names)
    found = np.bincount(own.document, np.isin(own.key, other.key), minlength=len(documents))
    return [bool(count) for count in found]


def _cut(
    documents: Sequence[Document], protected: Sequence[Document], names: dict[str, int]
) -> list[Document]:
    """Remove every line of `documents` that lies in a window which `protected` holds too."""
    keep = _windows(protected, names).key
    result = list(documents)
    # Removing lines brings others together, which can form a shared window again: a few rounds.
    for _ in range(_CUTS):
        windows = _windows(result, names)
        shared = np.isin(windows.key, keep)
        if not shared.any():
            break
        marked: dict[int, set[int]] = {}
        for document, line in zip(windows.document[shared], windows.line[shared], strict=True):
            lines = range(int(line), int(line) + WINDOW_LINES)
            marked.setdefault(int(document), set()).update(lines)
        cut = [_without(d, marked[i]) if i in marked else d for i, d in enumerate(result)]
        result = [d for d in cut if d.text.strip()]
    return result


def _drop_repeats(documents: Sequence[Document], names: dict[str, int]) -> list[Document]:
    windows = _windows(documents, names)
    # np.unique returns the first occurrence, and documents come in order.
    _, first, inverse = np.unique(windows.key, return_index=True, return_inverse=True)
    repeated = windows.document[first[inverse]] < windows.document
    size = len(documents)
    total = np.bincount(windows.document, minlength=size)
    repeats = np.bincount(windows.document, weights=repeated, minlength=size)
    kept = repeats <= _MAX_REPEATED_SHARE * total
    return [d for d, keep in zip(documents, kept, strict=True) if keep]


def _without(document: Document, lines: set[int]) -> Document:
    """The document without its n-th non-blank lines, n in `lines`."""
    kept: list[str] = []
    index = 0
    for line in document.text.splitlines(keepends=True):
        blank = not line.strip()
        if blank or index not in lines:
            kept.append(line)
        index += not blank
    return Document(document.name, "".join(kept))


def _windows(documents: Sequence[Document], names: dict[str, int]) -> _Windows:
    keys, owners, lines = [], [], []
    for index, document in enumerate(documents):
        stripped = (line.strip() for line in document.text.splitlines())
        ids = [names.setdefault(line, len(names)) for line in stripped if line]
        key = _window_keys(np.array(ids, dtype=np.uint64))
        keys.append(key)
        owners.append(np.full(len(key), index, dtype=np.int64))
        lines.append(np.arange(len(key), dtype=np.int64))
    empty = np.empty(0, dtype=np.int64)
    return _Windows(
        np.concatenate([*keys, empty.astype(np.uint64)]),
        np.concatenate([*owners, empty]),
        np.concatenate([*lines, empty]),
    )


def _window_keys(ids: np.ndarray) -> np.ndarray:
    """One 64-bit key for every run of five line numbers (multiply, xor, shift after each)."""
    count = max(0, len(ids) - WINDOW_LINES + 1)
    key = np.zeros(count, dtype=np.uint64)
    for offset in range(WINDOW_LINES):
        key = (key ^ ids[offset : offset + count]) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key
