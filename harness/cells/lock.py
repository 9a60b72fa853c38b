"""The lock of a cell: while a process holds it, no other runs the cell.

The locks are `filelock`'s, which are the kernel's: one is free when its process dies, however that
dies. A file system without them is refused, for a file in their place would outlive its process.
"""

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.cells.identity import Cell
from harness.errors import UserError

LOCK_FILE = "lock"
LOCK_POLL_SECONDS = 0.2
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of flock(2), where there are none
OnProgress = Callable[[dict[str, Any]], None]
Stopped = Callable[[], bool]


class Busy(Exception):
    """Another process runs the cell."""


def is_running(cell: Cell) -> bool:
    """Whether some process, here or on another node, holds the cell's lock."""
    return is_locked(cell.directory)


def is_locked(directory: Path) -> bool:
    """`is_running` of the cell that writes to `directory`."""
    path = directory / LOCK_FILE
    if not path.exists():
        return False
    try:
        with holding(path, wait=False):
            return False
    except Timeout:
        return True


@contextlib.contextmanager
def locked(
    cell: Cell, on_progress: OnProgress, stopped: Stopped, wait: bool = True
) -> Iterator[None]:
    """Hold the cell's lock; the kernel frees it when this process dies, however it dies.

    Where another process holds it: Busy unless it is to `wait`, and KeyboardInterrupt when
    `stopped`, asked meanwhile.
    """
    told = False

    def look() -> bool:
        nonlocal told
        if not told:
            on_progress({"phase": "waiting for another process that runs this cell"})
        told = True
        return stopped()

    with contextlib.ExitStack() as held:
        try:
            held.enter_context(holding(cell.directory / LOCK_FILE, wait, look))
        except Timeout:
            raise (KeyboardInterrupt if wait else Busy) from None
        yield


@contextlib.contextmanager
def holding(
    path: Path, wait: bool = True, given_up: Callable[[], bool] | None = None
) -> Iterator[None]:
    """Hold the lock of a file, which is made where it is missing and stays.

    Raises:
        Timeout: another process holds it and there is no `wait`, or `given_up` (asked every 0.2 s).
        UserError: the file system offers no locks.
    """
    try:
        lock = FileLock(path, blocking=wait, fallback_to_soft=False)
        lock.acquire(poll_interval=LOCK_POLL_SECONDS, cancel_check=given_up)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise UserError(
            f"{path.parent} is on a file system without file locks ({error.strerror}); choose "
            "another folder (NFS 4, or Lustre mounted with flock, have them)."
        ) from error
    try:
        yield
    finally:
        lock.release()
