"""Labelled images: read once into arrays of pixels, divided into splits or folds, read in batches.

`check` and `prepare` mirror those of texts; digits need neither `datasets` nor torch.
"""

from harness.data.images.build import check, prepare
from harness.data.images.image_set import ImageSet
from harness.data.images.sources import SOURCES

__all__ = ["SOURCES", "ImageSet", "check", "prepare"]
