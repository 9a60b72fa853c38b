"""A prepared folder: built once, whole or not at all, by whichever process comes first."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from harness.cells.lock import holding
from harness.errors import writing

META = "meta.json"


def build_once(final: Path, write: Callable[[Path], None]) -> None:
    """See that `final` holds a finished folder; `write` fills an empty one given to it.

    Two processes that ask for the same folder do not clash: one builds, the other waits. A build
    that dies leaves nothing that looks finished. UserError where `final` cannot be written,
    or locked.
    """
    if (final / META).exists():
        return
    with writing(final.parent, "The prepared data", "choose another folder with cache="):
        _build_once(final, write)


def _build_once(final: Path, write: Callable[[Path], None]) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    with holding(Path(f"{final}.lock")):
        if (final / META).exists():
            return
        # The lock is ours, so a folder of this name is the rest of a build that was killed.
        temporary = final.with_name(f".{final.name}.partial")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            write(temporary)
            # A folder without meta.json can only be the rest of an interrupted deletion.
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
