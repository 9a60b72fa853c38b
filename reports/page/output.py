"""Where a report is written: whole or not at all, and in one sentence where that fails."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness.errors import UserError, writing
from reports.data.load import ReportError

STALE_SECONDS = 600.0  # a folder of a report that was killed


@contextlib.contextmanager
def replacing(folder: Path, what: str) -> Iterator[Path]:
    """A temporary folder whose files replace those of `folder` of the same names at the end.

    Nothing changes where the block raises. ReportError where `folder` cannot be written: it says
    that `what` goes elsewhere with -o.
    """
    try:
        with writing(folder, what, "write it elsewhere with -o FOLDER"):
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob(".*.tmp"):
                if time.time() - old.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder) as name:
                yield Path(name)
                for file in sorted(Path(name).iterdir()):
                    os.replace(file, folder / file.name)
    except UserError as error:
        raise ReportError(str(error)) from error
