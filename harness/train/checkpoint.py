"""The checkpoint of a training run: written whole or not at all, continued exactly.

It is tensors, plain values and the few classes that the optimizer's file names, and is read as
that: a folder on a shared disk, or one that `launch.resume_from` names, can hold a file that runs
code when it is unpickled.
"""

import contextlib
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness import optimizers
from harness.cells.store import CHECKPOINT_FILE
from harness.errors import UserError
from harness.meters import add_up
from harness.meters.stability import LossWatch
from harness.train.distributed.model import (
    load_model_state,
    load_optimizer_state,
    model_state,
    optimizer_state,
)
from harness.train.setup import Row, Setup


@dataclass
class Progress:
    """All that a checkpoint must hold besides model and optimizer."""

    step: int = 0
    train_seconds: float = 0.0
    meter_seconds: float = 0.0
    metered: dict[str, Any] = field(default_factory=dict)  # of `harness.meters.run_meters`
    peaks: dict[str, int] = field(default_factory=dict)
    reserved: dict[str, int] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    forward_backward_seconds: list[float] = field(default_factory=list)
    optimizer_seconds: list[float] = field(default_factory=list)
    elapsed_seconds: list[float] = field(default_factory=list)  # train_seconds after each step
    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    nonfinite_gradients_total: int = 0
    largest_update_rms: float = 0.0
    resumed_at_step: int | None = None
    generated: list[list[int]] = field(default_factory=list)  # before fine-tuning, token ids


def save(setup: Setup, progress: Progress, watch: LossWatch) -> None:
    """Write `checkpoint.pt` into the cell's folder, atomically.

    Where it cannot be written (the disk is full, say) the one before stays, training goes on, and
    the log, the live view and the record's `checkpoint_error` say so.
    """
    ranks = setup.ranks
    # Whole whatever the ranks, so that any number of them continues it; all take part in this.
    weights = model_state(setup.model, ranks)
    optimizer = optimizer_state(setup.model, setup.optimizer, ranks)
    progresses = ranks.gather(vars(progress))
    if ranks.index > 0:
        return
    state = {
        "id": setup.job["id"],
        "run": setup.job["run"],
        "model": weights,
        "optimizer": optimizer,
        "progress": progresses,
        "watch": watch.state_dict(),
        "random": torch.get_rng_state(),
    }
    with _failing_aloud(setup, progress.step):
        _write(state, setup.directory / CHECKPOINT_FILE)


def _write(state: dict[str, Any], path: Path) -> None:
    """Under a temporary name first; nothing of it stays where writing fails."""
    for left_by_a_killed_one in path.parent.glob(f"{path.stem}.*.tmp"):
        left_by_a_killed_one.unlink(missing_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            torch.save(state, handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _failing_aloud(setup: Setup, step: int) -> Iterator[None]:
    """An error of the file system becomes a sentence; any other error is one."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch's writer wraps what the file system said.
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        cause = error if isinstance(error, OSError) else error.__context__ or error
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        told = (
            f"The checkpoint of step {step} was not written to {setup.directory} ({reason}); "
            "training goes on without it."
        )
        setup.facts.add(checkpoint_error=told)
        setup.report(warning=told)
        with contextlib.suppress(OSError):  # the log may lie on the same full disk
            print(told, file=sys.stderr, flush=True)


def _read(setup: Setup) -> dict[str, Any] | None:
    """What `save` wrote: for this cell, else for that of `launch.resume_from`; None without any."""
    other, path = setup.config.launch.resume_from, setup.directory / CHECKPOINT_FILE
    if not path.exists() and other is not None:
        path = Path(other) / CHECKPOINT_FILE
    try:
        state = _loaded(path, setup)
    except FileNotFoundError:
        if other is not None:
            raise UserError(
                f"launch.resume_from={other} holds no {CHECKPOINT_FILE} any more."
            ) from None
        return None
    if state["id"] == setup.job["id"] or (other is not None and state["run"] == setup.job["run"]):
        return state
    if other is not None:
        raise UserError(f"{path} of launch.resume_from={other} is that of another run.")
    return None


def _loaded(path: Path, setup: Setup) -> dict[str, Any]:
    """The content of a checkpoint; nothing in the file is run.

    Raises UserError for a file that is none, or that holds other objects than `save` writes.
    """
    path.stat()  # FileNotFoundError where there is none
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is damaged, or no checkpoint; it was not read.")
    # Shards are cut from whole tensors, which need not all be on the device, nor in memory once a
    # rank.
    cut = setup.ranks.sharded
    allowed: list[Any] = [*optimizers.checkpoint_classes(setup.config.optimizer)]
    try:
        with torch.serialization.safe_globals(allowed):
            state = torch.load(path, "cpu" if cut else setup.device, weights_only=True, mmap=cut)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"an object ({named[1]})" if named else "something"
        raise UserError(
            f"{path} holds {what} that no checkpoint of this run has; it was not read."
        ) from None
    except RuntimeError as error:
        if "PytorchStreamReader" not in str(error):
            raise
        raise UserError(f"{path} is damaged, or no checkpoint; it was not read.") from None
    keys = {"id", "run", "model", "optimizer", "progress", "watch", "random"}
    if not isinstance(state, dict) or not keys <= set(state):
        raise UserError(f"{path} is no checkpoint of a cell; it was not read.")
    return state


def load(setup: Setup, watch: LossWatch) -> Progress:
    """Continue from the checkpoint of an earlier attempt at this very cell, if there is one.

    Else from that of `launch.resume_from`: the same run on other ranks, whose times and losses are
    kept, but not its peaks. Raises UserError where that has none, and RuntimeError where the ranks
    found different steps.
    """
    ranks, state = setup.ranks, _read(setup)
    steps = ranks.gather(None if state is None else state["progress"][0]["step"])
    if len(set(steps)) > 1:  # it was written, or deleted, while they read it
        raise RuntimeError(f"The ranks found checkpoints of different steps: {steps}.")
    if state is None:
        return Progress()
    load_model_state(setup.model, state["model"], ranks)
    load_optimizer_state(setup.model, setup.optimizer, state["optimizer"], ranks)
    watch.load_state_dict(state["watch"])
    torch.set_rng_state(state["random"].cpu())
    progress = Progress(**state["progress"][0])
    if state["id"] == setup.job["id"]:
        progress = Progress(**state["progress"][ranks.index])
    else:
        progress.peaks, progress.reserved = {}, {}
        # One rank goes on with what all of the earlier ones took: the sum is recorded.
        progress.metered = add_up([part["metered"] for part in state["progress"]])
        if ranks.index:
            numbers = (int, float)
            progress.metered = {
                key: 0.0 if isinstance(value, numbers) else value
                for key, value in progress.metered.items()
            }
    progress.resumed_at_step = progress.step
    return progress
