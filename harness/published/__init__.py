"""The published packages that import as `gefen`, as this project's own library does.

They are unpacked into a private folder (`python -m harness.published`), never installed, and
loaded beside ours: see `loading`.
"""

from harness.published.loading import Published, folder, load
from harness.published.packages import PACKAGES, Package

__all__ = ["PACKAGES", "Package", "Published", "folder", "load"]
