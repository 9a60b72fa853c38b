"""Labelled images: arrays of pixels on disk, divided into splits or folds, read in batches."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.config import DataConfig
from harness.data.batches import Batch, random_order
from harness.data.documents import HELD_OUT_SHARE, SPLITS
from harness.data.once import META
from harness.data.source import Source
from harness.errors import UserError

VERSION = "images 3"
FILES: tuple[str, ...] = ()  # a prepared set cannot be given by path

Division = dict[str, np.ndarray]  # split -> indices of its images, int64, rising


@dataclass(frozen=True)
class Pixels:
    """Labelled images as a source gives them.

    Attributes:
        images: uint8, shape (n, height, width, channels), values 0 to `largest`.
        labels: int64, shape (n,), 0 to len(classes) - 1.
        splits: uint8, shape (n,): 0 train, 1 validation, 2 test.
        classes: the name of each label.
        largest: the pixel value that stands for white.
    """

    images: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    classes: list[str]
    largest: int = 255


@dataclass(frozen=True)
class ImageSet:
    """Labelled images and how a run divides them.

    Attributes:
        hash: SHA-256 over pixels, labels, splits and classes, in hex; folds do not change it.
        vocab_size: number of classes.
        meta: content of meta.json.
        division: indices of each split; empty before `divided`.
    """

    hash: str
    vocab_size: int
    meta: dict[str, Any] = field(repr=False)
    images: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    splits: np.ndarray = field(repr=False)
    folds: int | None = None
    fold: int = 0
    division: Division = field(default_factory=dict, repr=False)

    def divided(self, seed: int) -> "ImageSet":
        """As a run with this data seed uses it: with `folds` the seed draws them.

        Folds are those of the source's training images; its own test images stay aside.
        """
        if self.folds is None:
            return replace(self, division=in_splits(self.images, self.splits))
        pool = np.flatnonzero(self.splits == 0)
        return replace(self, division=in_folds(self.labels, pool, self.folds, self.fold, seed))

    def examples(self, split: str, seq_len: int) -> int:
        """Number of images in a split."""
        return len(self.division[split])

    def batch(self, seq_len: int, size: int, seed: int, step: int) -> Batch:
        """Training images by epochs without replacement, a function of its arguments alone.

        Epoch e is a permutation drawn from (seed, e + 1); a batch may lie across two epochs.

        Returns:
            pixel_values float32 (size, channels, height, width) in [-1, 1]; labels int64 (size,).
        """
        train = self.division["train"]
        places = np.arange(step * size, (step + 1) * size)
        epochs, within = np.divmod(places, len(train))
        orders = {int(e): random_order(len(train), seed, int(e) + 1) for e in np.unique(epochs)}
        chosen = [orders[int(e)][int(w)] for e, w in zip(epochs, within, strict=True)]
        return self._rows(train[chosen])

    def evaluation_batches(
        self, split: str, seq_len: int, size: int, max_tokens: int
    ) -> Iterator[Batch]:
        """The first images of a split, as many as `max_tokens` patches hold; see `batch`."""
        chosen = self.division[split][: max_tokens // seq_len]
        for first in range(0, len(chosen), size):
            yield self._rows(chosen[first : first + size])

    def _rows(self, indices: np.ndarray) -> Batch:
        scaled = self.images[indices].astype(np.float32) / (self.meta["largest"] / 2) - 1
        pixels = np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
        return {"pixel_values": pixels, "labels": np.asarray(self.labels[indices])}


def check(config: DataConfig) -> None:
    """Nothing: what images need is checked by their source."""


def described(config: DataConfig) -> object:
    """Whether copies of held-out images may have been found."""
    return config.copies


def write(folder: Path, config: DataConfig, source: Source, progress: bool) -> None:
    """Read the source into arrays.

    Raises:
        UserError: it cannot be read, or holds copies that `data.copies` refuses.
    """
    pixels: Pixels = source.read(config)
    copied = int(_copies(_digests(pixels.images), pixels.splits).sum())
    if copied and config.copies == "refuse":
        raise UserError(
            f"data {config.name!r}: {copied} training images are held out too, pixel by pixel; "
            "remove them, or set data.copies=drop, which leaves them out."
        )
    arrays = {"images": pixels.images, "labels": pixels.labels, "splits": pixels.splits}
    digest = hashlib.sha256(json.dumps([pixels.classes, pixels.largest]).encode())
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        digest.update(f"\n{name} {array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    meta = {
        "format": VERSION,
        "hash": digest.hexdigest(),
        "classes": pixels.classes,
        "largest": pixels.largest,
        "shared_with_held_out": copied,
        "images": {split: int((pixels.splits == code).sum()) for code, split in enumerate(SPLITS)},
    }
    (folder / META).write_text(json.dumps(meta, indent=1) + "\n")


def open_folder(folder: Path, config: DataConfig) -> ImageSet:
    """Open a prepared folder.

    Raises:
        UserError: fewer images than folds.
    """
    meta = json.loads((folder / META).read_text())
    images = np.load(folder / "images.npy", mmap_mode="r")
    labels, splits = (np.load(folder / f"{name}.npy") for name in ("labels", "splits"))
    count = int((splits == 0).sum())
    if config.folds is not None and count < config.folds:
        raise UserError(f"data.folds={config.folds} is more than the {count} training images.")
    classes = len(meta["classes"])
    return ImageSet(meta["hash"], classes, meta, images, labels, splits, config.folds, config.fold)


def in_folds(labels: np.ndarray, pool: np.ndarray, folds: int, fold: int, seed: int) -> Division:
    """Fold `fold` of `pool` is the test split, the next one validation, the rest train.

    Stratified: of every class each fold has its share to within one image, and folds differ by at
    most one image. `seed` draws the folds, so that another seed is another repetition.

    Args:
        labels: int64, shape (n,).
        pool: indices of the images to divide.
        folds: number of folds, 3 or more.
        fold: 0 to folds - 1.
        seed: data seed, >= 0.
    """
    mixed = pool[random_order(len(pool), seed, 0)]
    by_class = mixed[np.argsort(labels[mixed], kind="stable")]
    # Dealt out like cards, class after class: the next class begins where the last one ended.
    member = np.argsort(by_class, kind="stable") % folds
    ordered = np.sort(pool)
    test, validation = fold, (fold + 1) % folds
    return {
        "train": ordered[(member != test) & (member != validation)],
        "validation": ordered[member == validation],
        "test": ordered[member == test],
    }


def in_splits(images: np.ndarray, splits: np.ndarray) -> Division:
    """The source's own splits; a missing one is taken from train, 5 % by the pixels' hash.

    Equal images have equal hashes and so stand together, whatever the order of the source. What is
    held out is not trained on: training images that equal a held-out one are left out.
    """
    digests = _digests(images)
    found = {split: np.flatnonzero(splits == code) for code, split in enumerate(SPLITS)}
    train = found["train"] if len(found["train"]) else np.arange(len(images))
    order = np.array(sorted(train, key=lambda index: digests[index]), dtype=np.int64)
    held_out = max(1, round(HELD_OUT_SHARE * len(train)))
    for split in ("validation", "test"):
        if not len(found[split]):
            found[split], order = np.sort(order[:held_out]), order[held_out:]
    divided = np.zeros(len(images), dtype=np.uint8)
    for code, split in enumerate(SPLITS[1:], 1):
        divided[found[split]] = code
    kept = ~_copies(digests, divided)
    return {**found, "train": np.sort(order[kept[order]])}


def _digests(images: np.ndarray) -> list[bytes]:
    """SHA-256 of the pixels of each image."""
    return [hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest() for image in images]


def _copies(digests: list[bytes], splits: np.ndarray) -> np.ndarray:
    """Which images are of split 0 (train) and equal one of another split: bool (n,)."""
    held = {digest for digest, split in zip(digests, splits, strict=True) if split}
    both = zip(digests, splits, strict=True)
    return np.array([not split and digest in held for digest, split in both], dtype=bool)
