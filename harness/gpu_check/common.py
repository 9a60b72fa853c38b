"""What the parts of the GPU check share: their results, the time limit, and the archive."""

import io
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.cells import store

ARCHIVED_SUFFIXES = (".json", ".md", ".xml", ".log", ".txt", ".parquet")
PART_SECONDS = 450.0


@dataclass
class PartResult:
    """What one part found: `ok`, facts for summary.json, and a page for summary.md."""

    part: str
    ok: bool
    facts: dict[str, Any] = field(default_factory=dict)
    markdown: str = ""

    def write(self, folder: Path) -> None:
        """Write summary.json and summary.md into `folder`."""
        store.write_json_atomic(
            folder / "summary.json", {"part": self.part, "ok": self.ok, **self.facts}
        )
        store.write_bytes_atomic(folder / "summary.md", self.markdown.encode())


class Deadline:
    """Seconds left of a part's time; every child process gets no more than that."""

    def __init__(self, seconds: float = PART_SECONDS) -> None:
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left, never below 1 so that it can be a timeout."""
        return max(1.0, self._end - time.monotonic())

    def allows(self, seconds: float) -> bool:
        """True when work of about `seconds` still fits."""
        return self._end - time.monotonic() > seconds


def write_archive(path: Path, folders: list[Path]) -> None:
    """Pack summaries, logs and records of `folders` into one small archive, atomically."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for folder in folders:
            for file in sorted(folder.rglob("*")):
                inside = file.relative_to(folder)
                skipped = {"cache", "text"} & set(inside.parts)
                if file.is_file() and file.suffix in ARCHIVED_SUFFIXES and not skipped:
                    archive.add(file, arcname=f"{folder.name}/{inside}")
    store.write_bytes_atomic(path, buffer.getvalue())
