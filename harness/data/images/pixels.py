"""What an image source gives: raw pixels, labels and the split that the source itself names."""

from dataclasses import dataclass

import numpy as np


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
