"""The checkpoint of a training run: written whole or not at all, continued exactly."""

import os
from dataclasses import dataclass, field

import torch

from harness.meters.stability import LossWatch
from harness.setup import Row, Setup

NAME = "checkpoint.pt"


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


def save(setup: Setup, progress: Progress, watch: LossWatch) -> None:
    """Write `checkpoint.pt` into the cell's folder, atomically."""
    path = setup.directory / NAME
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    state = {
        "id": setup.job["id"],
        "model": setup.model.state_dict(),
        "optimizer": setup.optimizer.state_dict(),
        "progress": progress,
        "watch": watch.state_dict(),
        "random": torch.get_rng_state(),
    }
    with temporary.open("wb") as handle:
        torch.save(state, handle)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def load(setup: Setup, watch: LossWatch) -> Progress:
    """Continue from the checkpoint of an earlier attempt at this very cell, if there is one."""
    path = setup.directory / NAME
    if not path.exists():
        return Progress()
    # Our own file of this cell; it holds plain Python objects beside tensors.
    state = torch.load(path, map_location=setup.device, weights_only=False)
    if state["id"] != setup.job["id"]:
        return Progress()
    setup.model.load_state_dict(state["model"])
    setup.optimizer.load_state_dict(state["optimizer"])
    watch.load_state_dict(state["watch"])
    torch.set_rng_state(state["random"].cpu())
    progress: Progress = state["progress"]
    progress.resumed_at_step = progress.step
    return progress
