"""Figures on memory and optimizer-step time. A cell without a number keeps its row, with why."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.load import BASELINE
from reports.pairing import match_states
from reports.style import (
    INK,
    WARN,
    Style,
    condition,
    conditions,
    drawing,
    heading,
    shared_legend,
    stacked_panels,
    styles,
)
from reports.text import GIB, TIMES, byte_text, digits, ms_text

KINDS = {
    "parameter_bytes": ("parameters", "#4D4D4D", ""),
    "gradient_bytes": ("gradients", "#999999", ""),
    "optimizer_state_bytes": ("optimizer state", "#D55E00", ""),
    "activation_bytes": ("activations (forward + backward)", "#A6CEE3", "///"),
    "step_transient_bytes": ("transient of the optimizer step", "#0072B2", "..."),
}
STATE_PANEL = ["model", "precision"]
PANEL = ["model", "seq_len", "precision"]


def measured(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Memory cells where a condition has them (else all), in conditions that have any `column`."""
    memory = runs[runs["task"] == "memory"]
    chosen = memory if memory[column].notna().any() else runs
    return chosen[chosen.groupby(STATE_PANEL)[column].transform("count") > 0]


def rows_of(group: pd.DataFrame, looks: dict[str, Style]) -> list[tuple[str, pd.DataFrame]]:
    """Variants of one condition with their cells, last first: the first stands on top."""
    names = [variant for variant in looks if (group["variant"] == variant).any()]
    return [(name, group[group["variant"] == name]) for name in reversed(names)]


def label_rows(axis: Axes, rows: list[tuple[str, pd.DataFrame]], looks: dict[str, Style]) -> None:
    """Names of the optimizers at the left."""
    axis.set_yticks(range(len(rows)), [looks[name].label for name, _ in rows])
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.grid(False, axis="y")


def status_text(cells: pd.DataFrame) -> str:
    """The statuses of cells without a value: "out of memory", "crashed"."""
    words = {"oom": "out of memory"}
    return ", ".join(dict.fromkeys(words.get(status, status) for status in cells["status"]))


def counts(groups: list[pd.DataFrame]) -> list[int]:
    """Rows of each panel."""
    return [int(group["variant"].nunique()) for group in groups]


def memory_stack(runs: pd.DataFrame) -> Figure:
    """Bytes by kind, stacked, and the measured peak, a panel a condition (medians over cells)."""
    looks = styles(runs)
    shown = measured(runs, "peak_bytes")
    groups = conditions(shown, PANEL)
    with drawing():
        figure, axes = stacked_panels(counts(groups), 7.6, 1.0)
        for axis, group in zip(axes, groups, strict=True):
            rows = rows_of(group, looks)
            for place, (_, cells) in enumerate(rows):
                draw_stack(axis, place, cells)
            label_rows(axis, rows, looks)
            axis.set_xlim(0, axis.get_xlim()[1] * 1.14)
            axis.set_title(condition(group, *PANEL), loc="left")
            axis.set_xlabel("Memory, GiB")
        shared_legend(figure, axes)
        heading(figure, "Memory by kind, and the measured peak")
    return figure


def draw_stack(axis: Axes, place: int, cells: pd.DataFrame) -> None:
    """One stacked bar; a cell without numbers shows its status instead."""
    left = 0.0
    for column, (label, color, hatch) in KINDS.items():
        value = cells[column].median() / GIB
        if np.isfinite(value) and value > 0:
            axis.barh(
                place, value, 0.62, left=left, color=color, hatch=hatch, label=label,
                edgecolor="white", linewidth=0.6,
            )  # fmt: skip
            left += value
    peak = cells["peak_bytes"].median()
    if np.isfinite(peak):
        axis.plot(
            peak / GIB, place, "D", color="#F0E442", markeredgecolor=INK, markersize=8,
            linestyle="none", label="measured peak", zorder=4,
        )  # fmt: skip
        axis.annotate(
            f"peak {byte_text(peak)}", (max(left, peak / GIB), place), xytext=(10, 0),
            textcoords="offset points", va="center", fontsize=9.5,
        )  # fmt: skip
    failed = cells[cells["status"] != "done"]
    if not failed.empty:
        below = -11 if np.isfinite(peak) else 0
        axis.annotate(
            f"{TIMES} {status_text(failed)}", (left, place), xytext=(10, below),
            textcoords="offset points", va="center", color=WARN, fontsize=9.5,
        )  # fmt: skip


def state_bars(runs: pd.DataFrame, baseline: str = BASELINE) -> Figure:
    """Counted optimizer state, bytes a parameter, with the ratio to the baseline's count."""
    looks = styles(runs)
    matched = match_states(runs, baseline).set_index("id")
    shown = measured(runs, "optimizer_state_bytes")
    groups = conditions(shown, STATE_PANEL)
    with drawing():
        figure, axes = stacked_panels(counts(groups), 6.4, 0.2)
        for axis, group in zip(axes, groups, strict=True):
            rows = rows_of(group, looks)
            for place, (name, cells) in enumerate(rows):
                draw_state(axis, place, cells, looks[name], matched, baseline)
            label_rows(axis, rows, looks)
            axis.set_xlim(0, axis.get_xlim()[1] * 1.3)
            axis.set_title(condition(group, *STATE_PANEL), loc="left")
            axis.set_xlabel("Optimizer state, bytes per parameter")
        heading(figure, "Counted optimizer state")
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
    if counted.empty:
        axis.text(0, place, f" {TIMES} {status_text(cells)}", va="center", color=WARN, fontsize=9.5)
        return
    pair = matched.loc[counted["id"].iloc[0]]
    value = pair["state_bytes"] / pair["parameters"]
    axis.barh(place, value, 0.62, color=look.color)
    text = f"{value:.2f}"
    if cells["optimizer"].iloc[0] != baseline and np.isfinite(pair["baseline_bytes"]):
        text += f"  ({pair['baseline_bytes'] / pair['state_bytes']:.2f}{TIMES} smaller)"
    axis.annotate(
        text, (value, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9.5
    )


def step_time(runs: pd.DataFrame) -> Figure:
    """Optimizer step: median with 10th to 90th percentile, and the first step, log axis (ms)."""
    looks = styles(runs)
    shown = measured(runs, "step_median_seconds")
    groups = conditions(shown, PANEL)
    with drawing():
        figure, axes = stacked_panels(counts(groups), 6.8, 0.8)
        for axis, group in zip(axes, groups, strict=True):
            rows = rows_of(group, looks)
            axis.set_xscale("log")
            for place, (name, cells) in enumerate(rows):
                draw_time(axis, place, cells, looks[name])
            label_rows(axis, rows, looks)
            plain_ticks(axis)
            axis.set_title(condition(group, *PANEL, "device"), loc="left")
            axis.set_xlabel("Time of one optimizer step, ms (log scale)")
        shared_legend(figure, axes)
        heading(figure, "Time of one optimizer step")
    return figure


def plain_ticks(axis: Axes) -> None:
    """Plain numbers on the log axis, over at least a decade so that it has two."""
    low, high = axis.get_xlim()
    axis.set_xlim(low / 1.3, max(high * 1.6, low * 12))
    axis.xaxis.set_major_formatter(lambda value, _: digits(value) if value < 1 else f"{value:,.0f}")
    axis.xaxis.set_minor_formatter(lambda value, _: "")
    axis.grid(True, axis="x", which="minor", color="#EEEEEE", linewidth=0.5)


def draw_time(axis: Axes, place: int, cells: pd.DataFrame, look: Style) -> None:
    """Median of the cells' medians, whiskers from their p10 to p90, the first step as a ring."""
    timed = cells[cells["step_median_seconds"].notna()]
    if timed.empty:
        text = f"{TIMES} {status_text(cells)}"
        axis.text(0.02, place, text, va="center", color=WARN, fontsize=9.5,
                  transform=axis.get_yaxis_transform())  # fmt: skip
        return
    middle, low, high, first = (
        1000 * float(timed[f"{name}_seconds"].median())
        for name in ("step_median", "step_p10", "step_p90", "first_step")
    )
    axis.plot(first, place, "o", color="none", markeredgecolor=look.color, markersize=9,
              markeredgewidth=1.5, label="first step (builds the state)")  # fmt: skip
    axis.plot([low, high], [place, place], color=look.color, linewidth=4, alpha=0.35,
              solid_capstyle="butt", label="10th to 90th percentile")  # fmt: skip
    axis.plot(middle, place, look.marker, color=look.color, markersize=7, linestyle="none",
              label="median of steady steps")  # fmt: skip
    axis.annotate(f"{ms_text(middle / 1000)} ms", (middle, place), xytext=(0, 9),
                  textcoords="offset points", ha="center", fontsize=9.5)  # fmt: skip
