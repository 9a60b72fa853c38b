"""Images with labels from the rows of a data set: centre-cropped, scaled, classes by name."""

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.config import DataConfig
from harness.data import dataset_rows
from harness.data.batches import random_order
from harness.data.documents import SPLITS
from harness.data.images import Pixels
from harness.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_MODES = {1: "L", 3: "RGB"}


def check_form(config: DataConfig) -> None:
    """UserError unless size and channels are given."""
    if config.image_size is None or config.image_size < 1:
        raise UserError(
            f"data.image_size={config.image_size} is not allowed; it must be a number of pixels, "
            "that of the model (model.image_size)."
        )
    if config.channels not in _MODES:
        raise UserError(f"data.channels={config.channels} is not allowed; 1 is grey, 3 is colour.")


def pixels(loaded: dict[str, Any], config: DataConfig) -> Pixels:
    """Every row of every split, centre-cropped and scaled to image_size; labels by class name."""
    named = dataset_rows.split_names(loaded)
    images: list[np.ndarray] = []
    names: list[str] = []
    splits: list[int] = []
    for code, split in enumerate(SPLITS):
        rows = named.get(split)
        if rows is None:
            continue
        for image, name in _labelled(rows, config):
            images.append(scaled(image, config))
            names.append(name)
            splits.append(code)
    if not images:
        raise UserError(f"data.path={config.path!r} holds no image.")
    if len(set(names)) == 1 and config.max_documents is not None:
        raise UserError(
            f"data.max_documents={config.max_documents} leaves one class of {config.path!r}, "
            f"{names[0]!r}; raise it, or set it to null for all images."
        )
    classes = sorted(
        set(names), key=lambda name: (len(name), name) if name.isdigit() else (0, name)
    )
    index = {name: number for number, name in enumerate(classes)}
    return Pixels(
        np.stack(images),
        np.array([index[name] for name in names], dtype=np.int64),
        np.array(splits, dtype=np.uint8),
        classes,
    )


def _labelled(rows: Any, config: DataConfig) -> Iterable[tuple["Image", str]]:
    """Each image with the name of its class, `max_documents` of the rows."""
    features = getattr(rows, "features", None) or {}
    names = getattr(features.get(config.label_column), "names", None)
    for row in dataset_rows.guarded(_sampled(rows, config.max_documents), config):
        for key in ("image_column", "label_column"):
            if getattr(config, key) not in row:
                raise UserError(
                    f"data.{key}={getattr(config, key)!r} is not a column of {config.path!r}; "
                    f"it has: {', '.join(row)}."
                )
        image, label = row[config.image_column], row[config.label_column]
        if not hasattr(image, "convert"):
            raise UserError(
                f"data.image_column={config.image_column!r} of {config.path!r} holds "
                f"{type(image).__name__}, not images."
            )
        yield image, str(names[label] if names is not None else label)


def _sampled(rows: Any, limit: int | None) -> Iterable[dict[str, Any]]:
    """`limit` rows by a fixed draw, in their order; of a stream the first ones.

    Rows often stand class by class, as those of a folder do: the first of them are one class.
    """
    if limit is None or not hasattr(rows, "__len__"):
        return islice(rows, limit)
    chosen = np.sort(random_order(len(rows), 0, 0)[:limit])
    return (rows[int(index)] for index in chosen)


def scaled(image: "Image", config: DataConfig) -> np.ndarray:
    """The largest square at the centre, scaled bilinearly: uint8 (size, size, channels)."""
    from PIL.Image import Resampling

    assert config.image_size is not None
    assert config.channels is not None
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    square = image.convert(_MODES[config.channels]).crop((left, top, left + side, top + side))
    size = (config.image_size, config.image_size)
    small = square if square.size == size else square.resize(size, Resampling.BILINEAR)
    return np.asarray(small, dtype=np.uint8).reshape(*size, config.channels)
