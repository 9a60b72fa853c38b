"""Near-duplicates across splits: windows of five lines, and passages of thirteen words.

A held-out loss is only worth something if the held-out text does not stand in the training text.
Code is copied between packages and between files of one package: windows of five stripped non-blank
lines that both hold are cut from training (and from test, where validation holds them). Rows are
copied with another id at the end, other case or spacing: documents are copies where at least half
of their passages of thirteen words stand on the other side. Words are compared whatever their case
and punctuation; a document of fewer words is compared as a whole, which finds its exact copies
alone and is counted as too short to be checked.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.data.documents import Document, Splits

WINDOW_LINES = 5
PASSAGE_WORDS = 13
COPIED_SHARE = 0.5  # of a document's passages
_MAX_REPEATED_SHARE = 0.5
_CUTS = 4
# A character each of scripts that are written without spaces, else letters and digits in a row.
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+")

_INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")  # soft hyphens, spaces without width

_Taker = Callable[[Sequence[Document], dict[str, int]], "_Windows"]
Counts = dict[str, dict[str, int]]  # split -> what -> number of documents


@dataclass(frozen=True)
class _Windows:
    """All windows (or passages) of a split, in order.

    `key` uint64 (n,) stands for the content, `document` int64 (n,) for the document by index,
    `first` and `last` int64 (n,) for the non-blank lines of it that the window touches.
    """

    key: np.ndarray
    document: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def share(self, count: int, keys: np.ndarray) -> np.ndarray:
        """Of each of `count` documents the share of its windows in `keys`; 0 where it has none."""
        total = np.bincount(self.document, minlength=count)
        found = np.bincount(self.document, np.isin(self.key, keys), minlength=count)
        return np.asarray(found / np.maximum(total, 1))

    def of(self, documents: np.ndarray) -> np.ndarray:
        """The keys of some documents, given by a mask over all."""
        return self.key[documents[self.document]]


def remove_shared(splits: Splits) -> tuple[Splits, Counts]:
    """Cut shared windows and leave out copies, from train and, against validation, from test.

    A training document is dropped too when more than half of its windows stand in earlier training
    documents: model zoos hold many near-copies of one file.

    Returns:
        The splits, and how many documents of each were `repeated` (dropped for that) and
        `shared_with_held_out` (dropped or cut because held-out text holds the same).
    """
    names: dict[str, int] = {}
    validation = splits["validation"]
    test = _apart(splits["test"], validation, names)
    once = _drop_repeats(splits["train"], names)
    train = _apart(once, [*validation, *test], names)
    counts = {
        "train": {
            "repeated": len(splits["train"]) - len(once),
            "shared_with_held_out": _changed(once, train),
        },
        "validation": {},
        "test": {"shared_with_held_out": _changed(splits["test"], test)},
    }
    return {"train": train, "validation": validation, "test": test}, counts


def shared_share(documents: Sequence[Document], others: Sequence[Document]) -> float:
    """Share (0..1) of the windows of `documents` that stand anywhere in `others`."""
    names: dict[str, int] = {}
    own, other = _windows(documents, names), _windows(others, names)
    return float(np.isin(own.key, other.key).mean()) if len(own.key) else 0.0


def overlap(documents: Sequence[Document], train: Sequence[Document]) -> dict[str, float | int]:
    """What is left in common with `train`, as shares (0..1) of held-out windows and passages.

    `documents_too_short_to_check` have fewer than PASSAGE_WORDS words.
    """
    names: dict[str, int] = {}
    own, other = _passages(documents, names), _passages(train, names)
    words = [len(_WORD.findall(document.text)) for document in documents]
    return {
        "windows_shared_with_train": shared_share(documents, train),
        "passages_shared_with_train": (
            float(np.isin(own.key, other.key).mean()) if len(own.key) else 0.0
        ),
        "documents_too_short_to_check": sum(count < PASSAGE_WORDS for count in words),
    }


def copies(documents: Sequence[Document], others: Sequence[Document]) -> np.ndarray:
    """Which of `documents` share a window with `others`, are copies of them or hold one: bool (n,).

    A document holds a copy if it has a passage of one of `others` that `documents` mostly hold.
    """
    names: dict[str, int] = {}
    windows, count = _windows(documents, names), len(documents)
    shared = windows.share(count, _windows(others, names).key) > 0
    own, other = _passages(documents, names), _passages(others, names)
    copied = other.of(other.share(len(others), own.key) >= COPIED_SHARE)
    return np.asarray(
        shared | (own.share(count, other.key) >= COPIED_SHARE) | (own.share(count, copied) > 0)
    )


def normalised(text: str) -> str:
    """The words of a text whatever their case, spacing, punctuation and form in Unicode."""
    return " ".join(_words(text))


def _words(text: str) -> list[str]:
    composed = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    return _WORD.findall(composed.casefold())


def _apart(
    documents: Sequence[Document], protected: Sequence[Document], names: dict[str, int]
) -> list[Document]:
    """`documents` without what `protected` holds too."""
    kept = _cut(documents, _windows(protected, names).key, _windows, names)
    own, other = _passages(kept, names), _passages(protected, names)
    copied = own.share(len(kept), other.key) >= COPIED_SHARE
    kept = [document for document, copy in zip(kept, copied, strict=True) if not copy]
    # A protected document may still stand inside a longer one.
    rest = own.of(~copied)
    held = other.of(other.share(len(protected), rest) >= COPIED_SHARE)
    return _cut(kept, held, _passages, names) if len(held) else kept


def _cut(
    documents: Sequence[Document], keys: np.ndarray, windows_of: _Taker, names: dict[str, int]
) -> list[Document]:
    """Remove every line of `documents` that lies in a window of `keys`."""
    result = list(documents)
    # Removing lines brings others together, which can form a shared window again: a few rounds.
    for _ in range(_CUTS):
        windows = windows_of(result, names)
        shared = np.isin(windows.key, keys)
        if not shared.any():
            break
        marked: dict[int, set[int]] = {}
        for document, first, last in zip(
            windows.document[shared], windows.first[shared], windows.last[shared], strict=True
        ):
            marked.setdefault(int(document), set()).update(range(int(first), int(last) + 1))
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


def _changed(before: Sequence[Document], after: Sequence[Document]) -> int:
    """How many documents are gone, or are there in part."""
    kept = {id(document) for document in after}
    return sum(id(document) not in kept for document in before)


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
    """Runs of WINDOW_LINES lines; shorter documents have none."""
    parts = []
    for document in documents:
        lines = [line.strip() for line in document.text.splitlines() if line.strip()]
        key = _keys(lines, WINDOW_LINES, names)
        first = np.arange(len(key), dtype=np.int64)
        parts.append((key, first, first + WINDOW_LINES - 1))
    return _joined(parts)


def _passages(documents: Sequence[Document], names: dict[str, int]) -> _Windows:
    """Runs of PASSAGE_WORDS words; a shorter document is one passage."""
    parts = []
    for document in documents:
        lines = [line for line in document.text.splitlines() if line.strip()]
        found = [_words(line) for line in lines]
        words = [word for line in found for word in line]
        line_of = np.repeat(np.arange(len(lines)), [len(line) for line in found]).astype(np.int64)
        size = min(PASSAGE_WORDS, len(words))
        key = _keys(words, size, names) if size else np.empty(0, dtype=np.uint64)
        parts.append((key, line_of[: len(key)], line_of[size - 1 :] if size else line_of))
    return _joined(parts)


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> _Windows:
    empty = np.empty(0, dtype=np.int64)
    owners = np.repeat(np.arange(len(parts)), [len(key) for key, _, _ in parts]).astype(np.int64)
    keys = np.concatenate([empty.astype(np.uint64), *(key for key, _, _ in parts)])
    first = np.concatenate([empty, *(first for _, first, _ in parts)])
    last = np.concatenate([empty, *(last for _, _, last in parts)])
    return _Windows(keys, owners, first, last)


def _keys(items: Sequence[str], size: int, names: dict[str, int]) -> np.ndarray:
    """One 64-bit key for every run of `size` items (multiply, xor, shift after each)."""
    ids = np.array([names.setdefault(item, len(names) + 1) for item in items], dtype=np.uint64)
    count = max(0, len(ids) - size + 1)
    key = np.zeros(count, dtype=np.uint64)
    for offset in range(size):
        key = (key ^ ids[offset : offset + count]) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key
