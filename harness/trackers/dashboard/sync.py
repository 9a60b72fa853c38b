"""Offline W&B runs to the server, each once, by `wandb sync` (0.31).

`wandb sync` leaves `<run>.wandb.synced` beside a run that arrived and passes over it afterwards.
Identity and group are in the run's file, so that a run which is sent again (its marker lost) lands
on the same id. A run that is still being written gets its marker too. Without a server it keeps
trying; therefore access is checked first, and the markers, not its exit code, say what arrived.
"""

import subprocess
from pathlib import Path
from typing import NamedTuple

from harness import child
from harness.cells import store
from harness.errors import UserError

FILES = "offline-run-*/*.wandb"


class Runs(NamedTuple):
    """Offline runs of a study: to be sent, still being written, with their marker."""

    waiting: list[Path]
    running: list[Path]
    synced: list[Path]


def find(study: Path) -> Runs:
    """The study's offline runs; UserError where there are none."""
    files = sorted((study / "wandb").glob(FILES))
    if not files:
        raise UserError(f"{study} holds no offline W&B runs (wandb/offline-run-*).")
    synced = [file for file in files if file.with_name(f"{file.name}.synced").exists()]
    rest = [file for file in files if file not in synced]
    running = _running(study, rest)
    return Runs([file for file in rest if file not in running], running, synced)


def sync(study: Path) -> Runs:
    """Send those that wait, in one `wandb sync`; returns where the runs stand afterwards."""
    folders = [str(file.parent) for file in find(study).waiting]
    command = child.command("wandb", "sync", *folders)
    if folders:
        subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
    return find(study)


def _running(study: Path, files: list[Path]) -> list[Path]:
    """Those of cells that run now, whose marker would keep the rest of the run back for good."""
    if not files:
        return []
    from harness.cells.lock import is_locked  # loads torch

    identities = {file: file.stem.removeprefix("run-") for file in files}
    cells = {file: identity.rpartition("-")[0] for file, identity in identities.items()}
    return [file for file in files if is_locked(store.cell_dir(study, cells[file]))]
