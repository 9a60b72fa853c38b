"""Figures on memory: what a peak consists of, and the counted state.

A peak belongs to a moment. In a training step it is either in forward and backward, when
activations live and the step's transient does not, or in the optimizer's step, when it is the
other way round; so the kinds are split at each moment, and never add up to more than its peak. A
cell without a number keeps its row, with why.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.data.load import BASELINE
from reports.data.pairing import match_states
from reports.data.report import Report
from reports.data.text import GIB, TIMES, byte_text
from reports.data.values import PANEL, condition, conditions, metric
from reports.figures.layout import (
    narrow,
    row_text,
    rows,
    shared,
)
from reports.figures.panels import (
    STATE_PANEL,
    cells_text,
    counts,
    measured,
    rows_of,
    shown_conditions,
    status_text,
)
from reports.figures.registry import Drawn, ids
from reports.figures.style import Style, styles
from reports.tables.runs import MEMORY

REST = "rest_bytes"
HELD = ("parameter_bytes", "gradient_bytes", "optimizer_state_bytes")
NEEDED = (
    *(*HELD, "peak_train_step_bytes", "peak_steady_step_bytes", "peak_bytes"),
    *("activation_bytes", "step_transient_bytes"),
)
KINDS = {
    "parameter_bytes": ("parameters", "#4D4D4D", ""),
    "gradient_bytes": ("gradients", "#A8A8A8", ""),
    "optimizer_state_bytes": ("optimizer state", "#D55E00", ""),
    "activation_bytes": ("activations", "#A6CEE3", "////"),
    "step_transient_bytes": ("transient of the optimizer step", "#0072B2", "...."),
    REST: ("activations or transient (not separated)", "#E8E8E8", "xxxx"),
}


def figures(report: Report) -> list[Drawn]:
    """Breakdown at the peaks, and counted state."""
    runs, baseline, found = report.shown, report.baseline, []
    peaks, states = measured(runs, "peak_bytes"), measured(runs, "optimizer_state_bytes")
    if not peaks.empty:
        caption = (
            "Each bar ends at a measured peak (GiB): the upper at the peak of a whole training "
            "step with the state resident, the lower, thinner at the peak of an optimizer step "
            "alone. Parameters, gradients and state as counted; the rest of the peak is what was "
            "alive at that moment besides: activations in forward and backward, the step's "
            "transient in the optimizer's step. At the start of backward not all gradients exist "
            f"yet, so activations are a lower bound. {cells_text(peaks)}; no interval."
        )
        draw = partial(memory_stack, runs)
        found.append(Drawn(MEMORY, "memory", "Memory at its peak", caption, draw, ids(peaks)))
    if not states.empty:
        caption = (
            "Bytes per parameter counted in the storages of the optimizer's state, each once; in "
            "brackets AdamW's count over this one. Counts are exact: no interval. "
            f"{cells_text(states)}."
        )
        draw, title = partial(state_bars, runs, baseline), "Optimizer state"
        found.append(Drawn(MEMORY, "state_bytes", title, caption, draw, ids(states)))
    return found


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


def memory_stack(runs: pd.DataFrame) -> Figure:
    """Bytes by kind at the peak of a training step (upper bar) and of an optimizer step (lower)."""
    looks = styles(runs)
    groups = shown_conditions(measured(runs, "peak_bytes"))
    with narrow():
        figure, axes = rows([count * 4 // 3 + 1 for count in counts(groups)], legend=len(KINDS))
        for axis, group in zip(axes, groups, strict=True):
            listed = rows_of(group, looks)
            axis.set_ylim(-0.62, len(listed) - 0.42)
            for place, (name, cells) in enumerate(listed):
                draw_stack(axis, place, cells, looks[name])
            axis.set_title(condition(group, *PANEL), loc="left")
            axis.set_xlabel("Memory, GiB")
            axis.set_xlim(left=0)
        shared(axes)
    return figure


def draw_stack(axis: Axes, place: int, cells: pd.DataFrame, look: Style) -> None:
    """The bars of one optimizer, from medians over its cells; each ends at a measured peak."""
    chosen = pd.Series({name: metric(cells, name).median() for name in NEEDED})
    found = moments(chosen)
    for index, moment in enumerate(found):
        left, at = 0.0, place - (0.05 if index == 0 else 0.33)
        for name, value in moment.parts.items():
            label, color, hatch = KINDS[name]
            if value > 0:
                axis.barh(
                    at, value / GIB, 0.26 if index == 0 else 0.16, left=left, color=color,
                    hatch=hatch, label=label, edgecolor="white", linewidth=0.5,
                )  # fmt: skip
                left += value / GIB
    peak = f"  {byte_text(found[0].peak)}" if found else ""
    row_text(axis, place, look.label + peak, status_text(cells))


def state_bars(runs: pd.DataFrame, baseline: str = BASELINE) -> Figure:
    """Counted optimizer state, bytes a parameter, with the ratio to the baseline's count."""
    looks = styles(runs)
    matched = match_states(runs, baseline).set_index("id")
    groups = conditions(measured(runs, "optimizer_state_bytes"), STATE_PANEL)
    with narrow():
        figure, axes = rows(counts(groups), legend=0)
        for axis, group in zip(axes, groups, strict=True):
            for place, (name, cells) in enumerate(rows_of(group, looks)):
                draw_state(axis, place, cells, looks[name], matched, baseline)
            axis.set_title(condition(group, *STATE_PANEL), loc="left")
            axis.set_xlabel("Optimizer state, bytes per parameter")
        furthest = max(axis.get_xlim()[1] for axis in axes)
        for axis in axes:
            axis.set_xlim(0, furthest)  # one scale: AdamW's bar is shorter where all is bf16
    return figure


def draw_state(
    axis: Axes,
    place: int,
    cells: pd.DataFrame,
    look: Style,
    matched: pd.DataFrame,
    baseline: str,
) -> None:
    """One bar with its value and, for others than the baseline, how much smaller it is."""
    counted = cells[cells["id"].isin(matched.index)]
    text = look.label
    if not counted.empty:
        pair = matched.loc[counted["id"].iloc[0]]
        value = pair["state_bytes"] / pair["parameters"]
        axis.barh(place - 0.15, value, 0.34, color=look.color)
        text += f"  {value:.3g}"
        if cells["optimizer"].iloc[0] != baseline and np.isfinite(pair["baseline_bytes"]):
            text += f"  ({pair['baseline_bytes'] / pair['state_bytes']:.2f}{TIMES} smaller)"
    row_text(axis, place, text, status_text(cells))
