"""Where labelled images come from, by `DataConfig.source`."""

from collections.abc import Callable
from dataclasses import dataclass

from harness.config import DataConfig
from harness.data.images import digits, hub
from harness.data.images.pixels import Pixels


@dataclass(frozen=True)
class ImageSource:
    """As `harness.data.sources.Source`: `check` is cheap, `signature` notices changed content."""

    check: Callable[[DataConfig], None]
    signature: Callable[[DataConfig], object]
    read: Callable[[DataConfig], Pixels]


SOURCES = {
    "digits": ImageSource(digits.check, digits.signature, digits.read),
    "image_folder": ImageSource(hub.check_folder, hub.folder_signature, hub.read_folder),
    "hub_images": ImageSource(hub.check, hub.signature, hub.read),
}
