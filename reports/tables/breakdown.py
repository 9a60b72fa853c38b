"""What memory consists of at the moment of a peak.

A peak belongs to a moment. In a training step it is either in forward and backward, when
activations live and the step's transient does not, or in the optimizer's step, when it is the
other way round; so the kinds are split at each moment, and never add up to more than its peak.
"""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

REST = "rest_bytes"
HELD = ("parameter_bytes", "gradient_bytes", "optimizer_state_bytes")
NEEDED = (
    *(*HELD, "peak_train_step_bytes", "peak_steady_step_bytes", "peak_bytes"),
    *("activation_bytes", "step_transient_bytes"),
)


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
