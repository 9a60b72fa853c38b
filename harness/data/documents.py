"""Documents, splits and the fingerprint of a corpus."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

SPLITS = ("train", "validation", "test")
HELD_OUT_SHARE = 0.05


@dataclass(frozen=True)
class Document:
    """One file or row: where it comes from and its text."""

    name: str
    text: str


Splits = dict[str, list[Document]]


def content_order(documents: Sequence[Document]) -> list[Document]:
    """Documents ordered by the SHA-256 of their text, each distinct text once.

    The order is fixed, has nothing to do with file names, and so makes any prefix of a split a
    fair sample of it.
    """
    keyed = {hashlib.sha256(d.text.encode()).digest(): d for d in reversed(documents)}
    return [keyed[key] for key in sorted(keyed)]


def split_documents(documents: Sequence[Document]) -> Splits:
    """Hold out 5 % (at least one document) for validation and as many for test, by content hash.

    Fewer than three documents (one big text file) are split by position in lines instead:
    the first 90 % train, then 5 % validation, then 5 % test.
    """
    ordered = content_order(documents)
    if len(ordered) < 3:
        return _split_by_lines(documents)
    held_out = max(1, round(HELD_OUT_SHARE * len(ordered)))
    return {
        "validation": ordered[:held_out],
        "test": ordered[held_out : 2 * held_out],
        "train": ordered[2 * held_out :],
    }


def _split_by_lines(documents: Sequence[Document]) -> Splits:
    lines = "".join(d.text for d in documents).splitlines(keepends=True)
    first = round(len(lines) * (1 - 2 * HELD_OUT_SHARE))
    second = round(len(lines) * (1 - HELD_OUT_SHARE))
    parts = {
        "train": lines[:first],
        "validation": lines[first:second],
        "test": lines[second:],
    }
    return {
        split: [Document(f"{split} lines", "".join(part))] if part else []
        for split, part in parts.items()
    }


def text_hash(splits: Splits, tokenizer: str) -> str:
    """SHA-256 over the texts of all splits and the description of the tokenizer.

    Every document is preceded by its length in bytes, so moving a boundary changes the hash.
    """
    digest = hashlib.sha256(tokenizer.encode())
    for split in SPLITS:
        digest.update(f"\n{split} {len(splits[split])}\n".encode())
        for document in splits[split]:
            data = document.text.encode()
            digest.update(f"{len(data)}\n".encode())
            digest.update(data)
    return digest.hexdigest()
