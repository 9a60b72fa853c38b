"""The checkpoint of a training run: written whole or not at all, continued exactly."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness.cells.identity import run_id
from harness.cells.store import CHECKPOINT_FILE
from harness.errors import UserError
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
    energy_joules: float | None = None
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
    """Write `checkpoint.pt` into the cell's folder, atomically."""
    ranks, path = setup.ranks, setup.directory / CHECKPOINT_FILE
    # Whole whatever the ranks, so that any number of them continues it; all take part in this.
    weights = model_state(setup.model, ranks)
    optimizer = optimizer_state(setup.model, setup.optimizer, ranks)
    progresses = ranks.gather(progress)
    if ranks.index > 0:
        return
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    state = {
        "id": setup.job["id"],
        "run": run_id(setup.config, setup.job["data_hash"], setup.job["code_hash"]),
        "model": weights,
        "optimizer": optimizer,
        "progress": progresses,
        "watch": watch.state_dict(),
        "random": torch.get_rng_state(),
    }
    with temporary.open("wb") as handle:
        torch.save(state, handle)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def _read(setup: Setup) -> dict[str, Any] | None:
    """What `save` wrote: for this cell, else for that of `launch.resume_from`; None without any."""
    other, path = setup.config.launch.resume_from, setup.directory / CHECKPOINT_FILE
    if not path.exists() and other is not None:
        path = Path(other) / CHECKPOINT_FILE
    try:
        # Our own file of this run; it holds plain Python objects beside tensors. Shards are cut
        # from whole tensors, which need not all be on the device, nor in memory once a rank.
        cut = setup.ranks.sharded
        place = "cpu" if cut else setup.device
        state: dict[str, Any] = torch.load(path, place, weights_only=False, mmap=cut)
    except FileNotFoundError:
        if other is not None:
            raise UserError(
                f"launch.resume_from={other} holds no {CHECKPOINT_FILE} any more."
            ) from None
        return None
    run = run_id(setup.config, setup.job["data_hash"], setup.job["code_hash"])
    if state["id"] == setup.job["id"] or (other is not None and state["run"] == run):
        return state
    if other is not None:
        raise UserError(f"{path} of launch.resume_from={other} is that of another run.")
    return None


def load(setup: Setup, watch: LossWatch) -> Progress:
    """Continue from the checkpoint of an earlier attempt at this very cell, if there is one.

    Else from that of `launch.resume_from`: the same run on other ranks, whose times and losses are
    kept, but not its peaks. Raises UserError where that has none, and RuntimeError where the ranks
    found different steps.
    """
    ranks, state = setup.ranks, _read(setup)
    steps = ranks.gather(None if state is None else state["progress"][0].step)
    if len(set(steps)) > 1:  # it was written, or deleted, while they read it
        raise RuntimeError(f"The ranks found checkpoints of different steps: {steps}.")
    if state is None:
        return Progress()
    load_model_state(setup.model, state["model"], ranks)
    load_optimizer_state(setup.model, setup.optimizer, state["optimizer"], ranks)
    watch.load_state_dict(state["watch"])
    torch.set_rng_state(state["random"].cpu())
    progress: Progress = state["progress"][0]
    if state["id"] == setup.job["id"]:
        progress = state["progress"][ranks.index]
    else:
        progress.peaks, progress.reserved = {}, {}
        # One rank goes on with what all cards of the earlier ones took: the sum is recorded.
        earlier = [part.energy_joules for part in state["progress"]]
        known = [joules for joules in earlier if joules is not None]
        whole = sum(known) if len(known) == len(earlier) else None
        progress.energy_joules = 0.0 if ranks.index and whole is not None else whole
    progress.resumed_at_step = progress.step
    return progress
