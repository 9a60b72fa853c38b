"""Labelled images of a Hugging Face dataset id, or of local dataset files."""

import dataclasses
from pathlib import Path

from harness.config import DataConfig
from harness.data import dataset_rows, image_rows
from harness.data.images import Pixels

KIND = "images"
READS = frozenset({
    "path", "subset", "max_documents", "image_column", "label_column", "image_size", "channels",
})  # fmt: skip

signature = dataset_rows.signature


def check(config: DataConfig) -> None:
    """As for texts; size and channels are given.

    Raises:
        UserError: the path is missing, unreachable or of an unknown kind; a size is.
    """
    dataset_rows.check(config)
    image_rows.check_form(config)


def read(config: DataConfig) -> Pixels:
    """The images of a hub id or of local dataset files. UserError where it cannot be loaded."""
    whole = dataclasses.replace(config, max_documents=None)
    here = Path(config.path or "").exists()  # then a sample costs no download
    return image_rows.pixels(dataset_rows.load(whole if here else config), config)
