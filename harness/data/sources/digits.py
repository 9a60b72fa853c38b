"""The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries: real, and no download.

They are the test set of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits",
UCI Machine Learning Repository, 1998: 13 people wrote them, and who wrote which is not recorded, so
no division keeps a person's digits together. The file is read where it lies in the installed
package, whose import would cost every run a second.
"""

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from harness.config import DataConfig
from harness.data.images import Pixels
from harness.errors import UserError

KIND = "images"
READS = frozenset({"max_documents", "image_size", "channels"})
SIZE, LARGEST = 8, 16
_INSTALL = "pip install -e '.[images]' -c constraints.txt"


def check(config: DataConfig) -> None:
    """scikit-learn is installed, and the wanted form is the images' own.

    Raises:
        UserError: it is not, or `image_size` or `channels` are others than 8 and 1.
    """
    _file()
    if (config.image_size, config.channels) != (SIZE, 1):
        raise UserError(
            f"data.image_size={config.image_size} and data.channels={config.channels} are not "
            f"those of the digits; set data.image_size={SIZE} and data.channels=1."
        )


def signature(config: DataConfig) -> object:
    """The size of the file in bytes: it has been the same for ten years."""
    return _file().stat().st_size


def read(config: DataConfig) -> Pixels:
    """All digits, none of them set apart. `max_documents` bounds how many."""
    with gzip.open(_file()) as stream:
        table = np.loadtxt(stream, delimiter=",", max_rows=config.max_documents)
    images = table[:, :-1].astype(np.uint8).reshape(-1, SIZE, SIZE, 1)
    labels = table[:, -1].astype(np.int64)
    splits = np.zeros(len(labels), dtype=np.uint8)
    return Pixels(images, labels, splits, [str(digit) for digit in range(10)], LARGEST)


def _file() -> Path:
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"data.source=digits needs scikit-learn, which is not installed: {_INSTALL}"
        )
    return Path(found.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
