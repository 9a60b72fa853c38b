"""The lock of a cell: while a process holds it, no other runs the cell."""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.cells.identity import Cell

LOCK_FILE = "lock"
LOCK_POLL_SECONDS = 0.2
OnProgress = Callable[[dict[str, Any]], None]
Stopped = Callable[[], bool]


def is_running(cell: Cell) -> bool:
    """Whether some process, here or on another node, holds the cell's lock."""
    return is_locked(cell.directory)


def is_locked(directory: Path) -> bool:
    """`is_running` of the cell that writes to `directory`."""
    try:
        with (directory / LOCK_FILE).open("r+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def locked(cell: Cell, on_progress: OnProgress, stopped: Stopped) -> Iterator[None]:
    """Hold the cell's lock; the kernel frees it when this process dies, however it dies."""
    with (cell.directory / LOCK_FILE).open("w") as handle:
        told = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    on_progress({"phase": "waiting for another process that runs this cell"})
                told = True
                if stopped():
                    raise KeyboardInterrupt from None
                time.sleep(LOCK_POLL_SECONDS)
        yield
