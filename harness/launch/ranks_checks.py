"""What a cell over several ranks can get wrong, answered before anything starts; needs no torch."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cells import store
from harness.cells.store import CHECKPOINT_FILE
from harness.config.types import LaunchConfig, RunConfig
from harness.errors import UserError
from harness.optimizers import shards

if TYPE_CHECKING:
    from harness.cells.identity import Cell

COMPUTED = ("nproc", "strategy", "resume_from")


def resolved(launch: LaunchConfig) -> LaunchConfig:
    """The launch with its strategy explicit: none for one process, else ddp unless named."""
    if launch.nproc == 1:
        return replace(launch, strategy=None)
    return replace(launch, strategy=launch.strategy or "ddp")


def computed(launch: dict[str, Any]) -> dict[str, Any]:
    """What of `launch` changes a result: {} for one process that starts at its own beginning."""
    found = {key: launch[key] for key in COMPUTED}
    if found["resume_from"] is not None:
        found["resume_from"] = Path(found["resume_from"]).name  # the cell's id, wherever it lies
    return {} if found["nproc"] == 1 and found["resume_from"] is None else found


def check_optimizer(config: RunConfig) -> None:
    """UserError where FSDP would have to cut what the optimizer needs whole."""
    cut = config.launch.nproc > 1 and config.launch.strategy == "fsdp"
    if cut and not shards(config.optimizer):
        name = config.optimizer.variant or config.optimizer.name
        raise UserError(
            f"optimizer {name} does not work on the shards of launch.strategy=fsdp; choose "
            "launch.strategy=ddp."
        )


def check_resume(cell: "Cell") -> None:
    """UserError unless `launch.resume_from` is a stopped cell of this very run on other ranks.

    Nothing is asked of it where the cell has a checkpoint or a result of its own.
    """
    if cell.config.launch.resume_from is None:
        return
    from harness.cells.identity import job_config, run_id
    from harness.cells.lock import is_locked

    if (cell.directory / CHECKPOINT_FILE).exists() or cell.finished() is not None:
        return
    folder = Path(cell.config.launch.resume_from)
    told = f"launch.resume_from={folder}"
    if is_locked(folder):
        raise UserError(f"{told} is running; stop it, or wait for its result.")
    if not (folder / CHECKPOINT_FILE).exists():
        raise UserError(
            f"{told} holds no {CHECKPOINT_FILE}; name the folder of an unfinished cell."
        )
    job = store.read_json(folder / "job.json")
    if run_id(job_config(job), job["data_hash"], job["code_hash"]) != run_id(
        cell.config, cell.data_hash, cell.code_hash
    ):
        raise UserError(
            f"{told} is another run: all but launch.nproc, launch.strategy and micro_batch must be "
            "equal, and so must launch.nproc x micro_batch."
        )
