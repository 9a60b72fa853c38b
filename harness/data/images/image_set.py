"""A prepared image set as a training run reads it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.config import DataConfig
from harness.data.examples import Batch
from harness.data.images.division import Division, in_folds, in_splits, shuffled
from harness.errors import UserError

FORMAT = "images 2"


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
        orders = {int(e): shuffled(len(train), seed, int(e) + 1) for e in np.unique(epochs)}
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


def load_images(directory: Path, config: DataConfig) -> ImageSet:
    """Open a prepared folder.

    Raises:
        UserError: fewer images than folds.
    """
    meta = json.loads((directory / "meta.json").read_text())
    images = np.load(directory / "images.npy", mmap_mode="r")
    labels, splits = (np.load(directory / f"{name}.npy") for name in ("labels", "splits"))
    count = int((splits == 0).sum())
    if config.folds is not None and count < config.folds:
        raise UserError(f"data.folds={config.folds} is more than the {count} training images.")
    classes = len(meta["classes"])
    return ImageSet(meta["hash"], classes, meta, images, labels, splits, config.folds, config.fold)
