"""A rank of a cell as a process: which one it is, and how the first to fail is found; no torch."""

import os
import sys
import time
from pathlib import Path

from harness.config import RunConfig

PEER_LOST_SECONDS = 15.0  # within which the agent ends the ranks that a lost one has left behind

WRITING_SECONDS = 60.0  # which the first rank to fail has for its record


def rank_index(config: RunConfig) -> int:
    """The number of this process among its cell's; torchrun's variable counts only for several."""
    return int(os.environ["RANK"]) if config.launch.nproc > 1 else 0


def wait_for_end(error: BaseException) -> None:
    """After an error of a collective, leave the agent time to find the rank that was lost.

    The agent then ends this process too, and says which rank it was; this one knows only that
    nobody answers. Any other error is this rank's own.
    """
    module = sys.modules.get("torch.distributed")
    kind = getattr(module, "DistError", None)
    if (kind is not None and isinstance(error, kind)) or "gloo" in str(error):
        time.sleep(PEER_LOST_SECONDS)


def is_first_failure(directory: Path, attempt: int) -> bool:
    """Whether this rank is the first of the attempt to fail, and so the one that writes it down."""
    for old in directory.glob("failed.*"):
        if old.name != f"failed.{attempt}":
            old.unlink(missing_ok=True)
    try:
        (directory / f"failed.{attempt}").touch(exist_ok=False)
    except FileExistsError:
        # To end now would end the first in the middle of its record; its own end will end this.
        time.sleep(WRITING_SECONDS)
        return False
    return True
