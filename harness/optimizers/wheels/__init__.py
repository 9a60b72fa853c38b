"""The published `gefen` wheels, kept apart from this project's own library of that name.

They are unpacked into a private folder (`python -m harness.optimizers.wheels`), never installed,
and loaded beside ours: see `loading`.
"""

from harness.optimizers.wheels.loading import Published, folder, load
from harness.optimizers.wheels.packages import PACKAGES, Package

__all__ = ["PACKAGES", "Package", "Published", "folder", "load"]
