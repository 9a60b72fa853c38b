"""Read an image source once, atomically, into a folder of arrays, and find it again."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from harness.config import DataConfig
from harness.data.documents import SPLITS
from harness.data.images.image_set import FORMAT, ImageSet, load_images
from harness.data.images.pixels import Pixels
from harness.data.images.sources import SOURCES
from harness.data.once import META, build_once

# Keys that decide how a prepared set is used, not what it holds.
_USE = ("name", "folds", "fold")


def check(config: DataConfig, cache: Path | None = None) -> None:
    """Answer what a user can get wrong, before anything heavy is imported.

    A set from the hub that stands in `cache` needs no network and passes.

    Raises:
        UserError: as the source's own check.
    """
    prepared = cache is not None and (_folder(config, cache) / META).exists()
    if not (config.source == "hub_images" and prepared):
        SOURCES[config.source].check(config)


def prepare(config: DataConfig, cache: Path) -> ImageSet:
    """The images of `config`: opened if they stand in `cache`, else read there (once).

    Raises:
        UserError: as `check`; the source cannot be read; it has fewer images than folds.
    """
    check(config, cache)
    final = _folder(config, cache)
    build_once(final, lambda folder: _write(folder, SOURCES[config.source].read(config)))
    return load_images(final, config)


def _folder(config: DataConfig, cache: Path) -> Path:
    fields = {key: v for key, v in dataclasses.asdict(config).items() if key not in _USE}
    text = json.dumps([FORMAT, fields, SOURCES[config.source].signature(config)], sort_keys=True)
    return cache / hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(folder: Path, pixels: Pixels) -> None:
    arrays = {"images": pixels.images, "labels": pixels.labels, "splits": pixels.splits}
    digest = hashlib.sha256(json.dumps([pixels.classes, pixels.largest]).encode())
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        digest.update(f"\n{name} {array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    meta = {
        "format": FORMAT,
        "hash": digest.hexdigest(),
        "classes": pixels.classes,
        "largest": pixels.largest,
        "images": {split: int((pixels.splits == code).sum()) for code, split in enumerate(SPLITS)},
    }
    (folder / META).write_text(json.dumps(meta, indent=1) + "\n")
