"""Predictions against measurements: every record of task=memory below a folder.

Predicted with nothing but the record's configuration. State: counted bytes against the registry's
closed form. Peak: the record's `peak_bytes` (on a CPU the growth of the resident set over the
process after its imports, on CUDA the allocator's) against the peak of one device, or of a rank
under DDP or FSDP: both are those of rank 0, which has the largest shards.

A CPU process takes more than its live tensors, for its heap keeps what is freed; the plan has that
(`harness.planner.memory`), but not the holes between blocks, nor the temporaries of an optimizer
whose entry states none. A cell with `task.exact_peaks` is free of both the holes and what the heap
keeps: it is planned as any other device.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.cells import store
from harness.config import ModelConfig, OptimizerConfig, from_dict
from harness.errors import UserError
from harness.planner.config import PlanConfig
from harness.planner.memory import DDP, FSDP, ONE
from harness.planner.plan import estimate

STATE_TOLERANCE = 0.005
PEAK_TOLERANCE = {"cuda": 0.10, "cpu": 0.15}
UNJUDGED = ("small", "not predicted")
LEAST_CPU_BYTES = 500_000_000  # below, what a process allocates beside the run is not small


@dataclass(frozen=True)
class Comparison:
    """One record of a study, whose folder is `study`.

    Errors are (predicted - measured) / measured; None where nothing compares.
    """

    id: str
    study: str
    optimizer: str
    model: str
    precision: str
    device: str
    tokens: int
    state_bytes: int
    predicted_state_bytes: int | None
    state_error: float | None
    peak_bytes: int
    predicted_peak_bytes: int | None
    peak_error: float | None

    @property
    def verdict(self) -> str:
        """Whether both lie within their tolerances, in words."""
        if self.state_error is not None and abs(self.state_error) > STATE_TOLERANCE:
            return "state off"
        if self.peak_error is None:
            return "not predicted"
        if self.device == "cpu" and self.peak_bytes < LEAST_CPU_BYTES:
            return "small"
        return "ok" if abs(self.peak_error) <= PEAK_TOLERANCE[self.device] else "peak off"


def compare_all(root: Path) -> list[Comparison]:
    """Every finished record of task=memory below `root`, sorted by folder.

    Raises UserError when there is no such folder or no such record.
    """
    if not root.is_dir():
        raise UserError(f"--check {root} is no folder of records.")
    found = []
    for study in store.study_folders(root):
        for stored in store.read_records(study, skip_broken=True):
            record = stored.record
            try:
                if record.status == "done" and record.config["task"]["kind"] == "memory":
                    found.append(compare(record, str(study.relative_to(root))))
            except (UserError, KeyError, TypeError):
                continue  # of another version, or without what is compared
    if not found:
        raise UserError(f"--check {root} holds no finished record of task=memory.")
    return found


def compare(record: store.Record, study: str = "") -> Comparison:
    """The measured bytes of a record beside those predicted from its configuration.

    KeyError for a record without bytes; UserError for a configuration that is not known here.
    """
    metrics, values = record.metrics, record.config
    device = "cuda" if str(metrics["memory_method"]).startswith("cuda") else "cpu"
    config = planned(values, device)
    optimizer = config.optimizers[0]
    again = config.model.activation_checkpointing
    guess = estimate(config, optimizer, *_layout(values), checkpointing=again)
    state, peak = int(metrics["optimizer_state_bytes"]), int(metrics["peak_bytes"])
    return Comparison(
        record.id,
        study,
        guess.optimizer,
        config.model.name,
        config.precision,
        device,
        config.seq_len * config.micro_batch,
        state,
        guess.optimizer_state_bytes,
        _error(guess.optimizer_state_bytes, state),
        peak,
        guess.peak_bytes,
        _error(guess.peak_bytes, peak),
    )


def save(comparisons: Sequence[Comparison], root: Path) -> list[Path]:
    """Write the comparisons of each study below `root` to its PLAN_FILE, which reports show."""
    studies: dict[Path, list[dict[str, Any]]] = {}
    for item in comparisons:
        row = {**asdict(item), "verdict": item.verdict}
        studies.setdefault(root / item.study, []).append(row)
    for folder, rows in studies.items():
        store.write_json_atomic(folder / store.PLAN_FILE, {"cells": rows})
    return [folder / store.PLAN_FILE for folder in studies]


def _layout(values: dict[str, Any]) -> tuple[str, int]:
    """How the cell of a record was spread, and over how many ranks; rank 0's bytes are recorded."""
    launch = values.get("launch") or {}  # records of one process have none
    ranks = launch.get("nproc", 1)
    return (ONE if ranks == 1 else FSDP if launch["strategy"] == "fsdp" else DDP), ranks


def planned(values: dict[str, Any], device: str) -> PlanConfig:
    """What to plan for a record's configuration on the device that it ran on."""
    return PlanConfig(
        from_dict(ModelConfig, values["model"], "model."),
        [from_dict(OptimizerConfig, values["optimizer"], "optimizer.")],
        seq_len=values["seq_len"],
        micro_batch=values["micro_batch"],
        grad_accumulation=values["grad_accumulation"],
        precision=values["precision"],
        vocab_size=values["data"]["vocab_size"],
        device=device,
        exact_peaks=values["task"].get("exact_peaks", False),
    )


def _error(predicted: int | None, measured: int) -> float | None:
    return None if predicted is None or not measured else (predicted - measured) / measured
