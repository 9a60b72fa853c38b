"""What memory consists of at the moment of a peak, and whether four counts of state agree.

A peak belongs to a moment. In a training step it is either in forward and backward, when
activations live and the step's transient does not, or in the optimizer's step, when it is the
other way round; so the kinds are split at each moment, and never add up to more than its peak.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reports.style import styles
from reports.text import DASH, byte_text, missing
from reports.values import capped, metric

REST = "rest_bytes"
HELD = ("parameter_bytes", "gradient_bytes", "optimizer_state_bytes")
NEEDED = (
    *(*HELD, "peak_train_step_bytes", "peak_steady_step_bytes", "peak_bytes"),
    *("activation_bytes", "step_transient_bytes"),
)
AUDITED_FROM = 500e6  # bytes; below, resident memory on a CPU says little (measurement.md)
STATE_TOLERANCE, FORM_TOLERANCE = 0.02, 0.005
CHECKPOINT_OVERHEAD = 64 * 1024  # bytes of names and headers in a saved state, besides 2 %


@dataclass(frozen=True)
class Moment:
    """One measured peak and the bytes of each kind that add up to it."""

    name: str
    peak: float
    parts: dict[str, float]


def moments(cell: pd.Series) -> list[Moment]:
    """The training step's peak (or the cell's only one), and that of the optimizer's step alone."""
    found = []
    train, step = number(cell, "peak_train_step_bytes"), number(cell, "peak_steady_step_bytes")
    activation = number(cell, "activation_bytes")
    transient = number(cell, "step_transient_bytes")
    whole = number(cell, "peak_bytes") if math.isnan(train) else train
    if not math.isnan(whole):
        rest = REST
        if not math.isnan(activation + transient):
            rest = "activation_bytes" if activation >= transient else "step_transient_bytes"
        found.append(Moment("training step", whole, split(cell, whole, rest)))
    if not math.isnan(step):
        parts = split(cell, step, "step_transient_bytes")
        found.append(Moment("optimizer step", step, parts))
    return found


def split(cell: pd.Series, peak: float, rest: str) -> dict[str, float]:
    """Parameters, gradients and state as counted, the remainder of `peak` as `rest`, bytes.

    Where the counted bytes exceed the peak (pages never touched, say) the last are cut at it.
    """
    parts, left = {}, peak
    for name in HELD:
        value = number(cell, name)
        parts[name] = min(max(left, 0.0), 0.0 if math.isnan(value) else value)
        left -= parts[name]
    return {**parts, rest: max(left, 0.0)}


def number(cell: Any, name: str) -> float:
    """A metric of a cell, nan where it has none."""
    value = cell.get(name)
    return math.nan if value is None or isinstance(value, (str, list)) else float(value)


def audit(runs: pd.DataFrame) -> pd.DataFrame:
    """State by four methods, a row a memory cell, bytes; `flag` says in words what disagrees.

    `peak_increase_bytes` is the peak of the steady optimizer steps less parameters and gradients:
    the state and whatever else lives during a step. It may exceed the state by the step's
    transient, which a peak cannot tell apart; it must not fall short of it.
    """
    cells = runs[(runs["task"] == "memory") & ~capped(runs)]
    table = pd.DataFrame(
        {
            "variant": cells["variant"],
            "model": cells["model"],
            "seq_len": cells["seq_len"],
            "precision": cells["precision"],
            "device": cells["device"],
            "counted_bytes": metric(cells, "optimizer_state_bytes"),
            "closed_form_bytes": metric(cells, "optimizer_state_predicted_bytes"),
            "checkpoint_bytes": metric(cells, "optimizer_checkpoint_bytes"),
            "peak_increase_bytes": metric(cells, "peak_steady_step_bytes")
            - metric(cells, "parameter_bytes")
            - metric(cells, "gradient_bytes"),
            "status": cells["status"],
            "id": cells["id"],
        }
    )
    table["flag"] = [disagreement(row) for row in table.to_dict("records")]
    return table


def disagreement(row: dict[Any, Any]) -> str:
    """What disagrees beyond the tolerances, and what may explain it; empty where all agree."""
    counted, found = row["counted_bytes"], []
    if missing(counted):
        return "" if row["status"] == "done" else f"not counted: {row['status']}"
    form, saved, peak = (
        row[f"{name}_bytes"] for name in ("closed_form", "checkpoint", "peak_increase")
    )
    if not missing(form) and abs(counted - form) > FORM_TOLERANCE * form:
        found.append(
            f"counted {apart(counted, form)} the closed form (tolerance 0.5 %): the formula in "
            "the registry or the optimizer's state is not what it says"
        )
    if not missing(saved) and saved < counted * (1 - FORM_TOLERANCE):
        found.append(f"the checkpoint is {apart(saved, counted)} the count: it omits state")
    if not missing(saved) and saved > counted * (1 + STATE_TOLERANCE) + CHECKPOINT_OVERHEAD:
        found.append(
            f"the checkpoint is {apart(saved, counted)} the count: it saves what is not counted"
        )
    if missing(peak) or (row["device"] == "cpu" and counted < AUDITED_FROM):
        return "; ".join(found)
    if peak < counted * (1 - STATE_TOLERANCE):
        found.append(
            f"the peak grew {apart(peak, counted)} the count: part of the state was not resident "
            "together with parameters and gradients"
        )
    elif peak > counted * (1 + STATE_TOLERANCE):
        found.append(
            f"the peak grew by {byte_text(peak - counted)} more than the count: the step's "
            "transient, what the process keeps besides, or state that is not counted"
        )
    return "; ".join(found)


def apart(value: float, reference: float) -> str:
    """3.2 % above, 1.5 % below."""
    share = 100 * (value - reference) / reference if reference else math.inf
    return f"{abs(share):.1f} % {'above' if share > 0 else 'below'}"


def audit_view(runs: pd.DataFrame) -> pd.DataFrame:
    """The audit in human units; no rows without memory cells."""
    table, labels = audit(runs), styles(runs)
    judged = np.where(
        (table["device"] == "cpu") & (table["counted_bytes"] < AUDITED_FROM), " (not judged)", ""
    )
    rows = [
        {
            "optimizer": labels[row["variant"]].label,
            "model": row["model"],
            "seq": row["seq_len"],
            "precision": row["precision"],
            "counted": byte_text(row["counted_bytes"]),
            "closed form": byte_text(row["closed_form_bytes"]),
            "checkpoint": byte_text(row["checkpoint_bytes"]),
            "peak increase": byte_text(row["peak_increase_bytes"])
            + (small if not missing(row["peak_increase_bytes"]) else ""),
            "flag": row["flag"] or ("agree" if not missing(row["counted_bytes"]) else DASH),
            "id": row["id"],
        }
        for row, small in zip(table.to_dict("records"), judged, strict=True)
    ]
    return pd.DataFrame(rows)
