"""A user's own images: a folder with a folder for each class, CLASS/image.png.

It may hold train/, validation/ and test/ with the classes in each.
"""

import dataclasses
from pathlib import Path

from harness.config import DataConfig
from harness.data import dataset_rows, image_rows
from harness.data.images import Pixels
from harness.errors import UserError

KIND = "images"
READS = frozenset({
    "path", "max_documents", "image_column", "label_column", "image_size", "channels",
})  # fmt: skip


def check(config: DataConfig) -> None:
    """`path` is a local folder with folders in it.

    Raises:
        UserError: it is none.
    """
    folder = Path(config.path or "")
    if not config.path or not folder.is_dir():
        raise UserError(
            f"data.path={config.path!r} is no folder; data=image_folder needs one with a folder "
            "for each class (CLASS/image.png)."
        )
    if not any(entry.is_dir() for entry in folder.iterdir()):
        raise UserError(f"data.path={config.path!r} holds no folder; each class needs its own.")
    image_rows.check_form(config)


def signature(config: DataConfig) -> object:
    """Path, size and modification time of every file."""
    folder = Path(config.path or "")
    return dataset_rows.file_signature(sorted(file for file in folder.rglob("*") if file.is_file()))


def read(config: DataConfig) -> Pixels:
    """The images of a folder. UserError where it cannot be loaded."""
    whole = dataclasses.replace(config, max_documents=None)
    return image_rows.pixels(dataset_rows.load(whole, "imagefolder"), config)
