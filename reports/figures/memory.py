"""Figures on memory. A cell without a number keeps its row, with why."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.data.load import BASELINE
from reports.data.pairing import match_states
from reports.data.text import GIB, TIMES, byte_text
from reports.data.values import metric
from reports.figures.layout import (
    MOST_TICKS,
    column,
    narrow,
    plain_log,
    row_text,
    rows,
    shared,
    ticks_at,
)
from reports.figures.style import INK, WARN, Style, condition, conditions, styles
from reports.tables.breakdown import NEEDED, REST, moments

KINDS = {
    "parameter_bytes": ("parameters", "#4D4D4D", ""),
    "gradient_bytes": ("gradients", "#A8A8A8", ""),
    "optimizer_state_bytes": ("optimizer state", "#D55E00", ""),
    "activation_bytes": ("activations", "#A6CEE3", "////"),
    "step_transient_bytes": ("transient of the optimizer step", "#0072B2", "...."),
    REST: ("activations or transient (not separated)", "#E8E8E8", "xxxx"),
}
SPREAD = 6.0  # times this or more from the smallest to the largest: a log axis
MOST_PANELS = 4
STATE_PANEL = ["model", "precision"]
PANEL = ["model", "seq_len", "precision"]
Rows = list[tuple[str, pd.DataFrame]]


def measured(runs: pd.DataFrame, column_name: str) -> pd.DataFrame:
    """Memory cells where a study has them (else all), in conditions that have any such value."""
    memory = runs[runs["task"] == "memory"]
    chosen = memory if memory[column_name].notna().any() else runs
    return chosen[chosen.groupby(STATE_PANEL)[column_name].transform("count") > 0]


def shown_conditions(cells: pd.DataFrame) -> list[pd.DataFrame]:
    """The conditions to draw: all, or where they are many the longest sequence of each model.

    Of these at most `MOST_PANELS`, from the largest models; tables hold the rest.
    """
    groups = conditions(cells, PANEL)
    if len(groups) <= MOST_PANELS:
        return groups
    longest = cells.groupby(STATE_PANEL, dropna=False)["seq_len"].transform("max")
    groups = conditions(cells[cells["seq_len"] == longest], PANEL)
    sizes = [metric(group, "parameters").fillna(0.0).max() for group in groups]
    kept = sorted(range(len(groups)), key=lambda at: (-sizes[at], at))[:MOST_PANELS]
    return [groups[at] for at in sorted(kept)]


def rows_of(group: pd.DataFrame, looks: dict[str, Style]) -> Rows:
    """Variants of one condition with their cells, last first: the first stands on top."""
    names = [variant for variant in looks if (group["variant"] == variant).any()]
    return [(name, group[group["variant"] == name]) for name in reversed(names)]


def status_text(cells: pd.DataFrame) -> str:
    """The statuses of cells that did not finish, with a cross: "× out of memory"; else empty."""
    words = {"oom": "out of memory"}
    found = cells.loc[cells["status"] != "done", "status"]
    text = ", ".join(dict.fromkeys(words.get(status, status) for status in found))
    return f"{TIMES} {text}" if text else ""


def counts(groups: list[pd.DataFrame]) -> list[int]:
    """Rows of each panel."""
    return [int(group["variant"].nunique()) for group in groups]


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


SCALES = {
    "parameters": ("Parameters, millions", 1e6, ["seq_len", "precision"]),
    "seq_len": ("Sequence length, tokens", 1.0, ["model", "precision"]),
}
SIZES = {
    "peak_bytes": "Peak, GiB",
    "optimizer_state_bytes": "Optimizer state, GiB",
}


def scaling_groups(runs: pd.DataFrame, x: str) -> list[pd.DataFrame]:
    """Conditions of memory cells in which one optimizer was measured at several values of `x`.

    Of many those of the longest sequences (over models) or the largest models (over lengths).
    """
    cells = runs[runs["task"] == "memory"]
    groups = conditions(cells, SCALES[x][2]) if not cells.empty else []
    several = []
    for group in groups:
        done = group[group["peak_bytes"].notna()]
        if not done.empty and done.groupby("variant")[x].nunique().max() > 1:
            several.append(group)
    most = MOST_PANELS // (len(SIZES) if x == "parameters" else 1)
    if len(several) <= most:
        return several
    # The largest of the other size stand for the rest, as they come closest to a real use.
    other = "seq_len" if x == "parameters" else "parameters"
    ranked = sorted(several, key=lambda group: -float(metric(group, other).fillna(0).max()))
    kept = {id(group) for group in ranked[:most]}
    return [group for group in several if id(group) in kept]


def scaling(runs: pd.DataFrame, x: str) -> Figure:
    """Peak (and over models the state) against `x`, log axes; a cross where a cell failed."""
    looks = styles(runs)
    names = list(SIZES) if x == "parameters" else ["peak_bytes"]
    panels = [(group, name) for group in scaling_groups(runs, x) for name in names]
    with narrow():
        entries = len({name for group, _ in panels for name in group["variant"]})
        figure, axes = column([1.9] * len(panels), [0] * (len(panels) - 1) + [entries], left=0.56)
        for axis, (group, name) in zip(axes, panels, strict=True):
            draw_scaling(axis, group, looks, x, name)
            places = sorted(set(metric(group, x).dropna() / SCALES[x][1]))
            axis.set_xscale("log")
            plain_log(axis)
            if len(places) <= MOST_TICKS:
                ticks_at(axis, places)
            if wide(metric(group, name)):
                axis.set_yscale("log")
                plain_log(axis, "y")
            else:
                axis.set_ylim(bottom=0)
            axis.set_xlabel(f"{SCALES[x][0]} (log scale)")
            axis.set_ylabel(SIZES[name])
            axis.set_title(condition(group, *SCALES[x][2]), loc="left")
        shared(axes)
    return figure


def wide(values: pd.Series) -> bool:
    """Whether positive values spread so far that a log axis shows them better."""
    positive = values[values > 0]
    return bool(len(positive)) and float(positive.max()) > SPREAD * float(positive.min())


def draw_scaling(
    axis: Axes, group: pd.DataFrame, looks: dict[str, Style], x: str, name: str
) -> None:
    """A line for each optimizer through the medians of its cells."""
    for variant, look in looks.items():
        cells = group[group["variant"] == variant]
        if cells.empty:
            continue
        across = metric(cells, x) / SCALES[x][1]
        line = (metric(cells, name) / GIB).groupby(across).median().dropna()
        axis.plot(
            line.index, line, color=look.color, marker=look.marker, linestyle=look.line,
            label=look.label,
        )  # fmt: skip
        failed = across[(cells["status"] != "done") & across.notna()]
        for value in failed:
            place = 0.0 if math.isnan(value) else value
            axis.plot(
                place, 0.96, "x", color=look.color, markeredgecolor=WARN, markersize=6,
                markeredgewidth=1.6, transform=axis.get_xaxis_transform(), clip_on=False,
            )  # fmt: skip
            axis.annotate(
                look.label, (place, 0.96), xycoords=axis.get_xaxis_transform(), xytext=(-5, 0),
                textcoords="offset points", ha="right", va="center", color=INK,
            )  # fmt: skip
