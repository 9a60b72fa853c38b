"""Figures on time: the optimizer's step, and its ratio to the baseline's."""

import math
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.data.report import Report
from reports.data.text import digits, ms_text
from reports.data.values import PANEL, condition, metric
from reports.figures.layout import narrow, plain_log, row_text, rows, shared, wide
from reports.figures.panels import (
    cells_text,
    counts,
    measured,
    rows_of,
    shown_conditions,
    status_text,
)
from reports.figures.registry import Drawn, ids
from reports.figures.style import INK, Style, styles
from reports.tables.speed import LEAST, SPEED, ratios

PARTS = (
    ("step_median_seconds", "steady optimizer step, median"),
    ("first_step_seconds", "first optimizer step (builds the state)"),
    ("forward_backward_median_seconds", "forward and backward, median"),
)


def figures(report: Report) -> list[Drawn]:
    """Step times and their ratio to the baseline's."""
    runs, found = report.shown, []
    shown = measured(runs, "step_median_seconds")
    if shown.empty:
        return []
    caption = (
        f"Milliseconds, {cells_text(shown)}; bars from the 10th to the 90th percentile of the "
        "steady steps of a process. Processes ran one after another, not interleaved: an order "
        "of magnitude; gefen-step compares interleaved steps."
    )
    title = "Time of an optimizer step"
    found.append(Drawn(SPEED, "step_time", title, caption, partial(step_time, runs), ids(shown)))
    table = ratios(shown)
    if not table.empty:
        caption = (
            "Median step time of each process over AdamW's with the same seed, geometric mean "
            f"over n processes; 95 % t intervals on the logs where n is {LEAST} or more."
        )
        cells = tuple(dict.fromkeys(cell for row in table["ids"] for cell in row))
        draw, title = partial(step_ratio, runs, table), "Step time as a multiple of AdamW's"
        found.append(Drawn(SPEED, "step_ratio", title, caption, draw, cells))
    return found


def step_time(runs: pd.DataFrame) -> Figure:
    """Optimizer step (median, p10 to p90), first step, forward and backward; a row a variant."""
    looks = styles(runs)
    groups = shown_conditions(measured(runs, "step_median_seconds"))
    with narrow():
        figure, axes = rows(counts(groups), legend=len(PARTS) + 1)
        for axis, group in zip(axes, groups, strict=True):
            times = pd.concat([metric(group, name) for name, _ in PARTS]).dropna()
            if wide(times):
                axis.set_xscale("log")
            for place, (name, cells) in enumerate(rows_of(group, looks)):
                draw_time(axis, place, cells, looks[name])
            axis.set_title(condition(group, *PANEL, "device"), loc="left")
            axis.set_xlabel(f"Time, ms{' (log scale)' if wide(times) else ''}")
            if wide(times):
                plain_log(axis)
            else:
                axis.set_xlim(left=0)
        shared(axes)
    return figure


def draw_time(axis: Axes, place: int, cells: pd.DataFrame, look: Style) -> None:
    """Medians over the cells: a mark each, and a bar from p10 to p90 of the steady step."""
    at = place - 0.15
    middle, first, forward = (1000 * metric(cells, name).median() for name, _ in PARTS)
    low, high = (1000 * metric(cells, f"step_{name}_seconds").median() for name in ("p10", "p90"))
    if math.isfinite(low + high):
        axis.plot([low, high], [at, at], color=look.color, linewidth=4, alpha=0.35,
                  solid_capstyle="butt", label="its 10th to 90th percentile")  # fmt: skip
    marks: tuple[tuple[float, dict[str, Any]], ...] = (
        (forward, {"marker": "|", "color": INK, "markersize": 9, "markeredgewidth": 1.4}),
        (first, {"marker": "o", "color": "none", "markeredgecolor": look.color, "markersize": 6}),
        (middle, {"marker": look.marker, "color": look.color, "markersize": 5}),
    )
    for (value, style), (_, label) in zip(marks, (PARTS[2], PARTS[1], PARTS[0]), strict=True):
        if math.isfinite(value):
            axis.plot(value, at, linestyle="none", label=label, **style)
    text = f"{look.label}  {ms_text(middle / 1000)} ms" if math.isfinite(middle) else look.label
    row_text(axis, place, text, status_text(cells))


def step_ratio(runs: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """The step's time as a multiple of the baseline's, with intervals where there are any."""
    looks = styles(runs)
    groups = shown_conditions(table)
    with narrow():
        figure, axes = rows(counts(groups), legend=1)
        for axis, group in zip(axes, groups, strict=True):
            values = pd.Series([1.0, *group[["ratio", "lower", "upper"]].to_numpy(float).ravel()])
            axis.set_xscale("log" if wide(values) else "linear")
            axis.axvline(1, color=INK, linewidth=1, linestyle="--", label="AdamW's own time")
            for place, (name, cells) in enumerate(rows_of(group, looks)):
                row, look, at = cells.iloc[0], looks[name], place - 0.15
                text = f"{look.label}  {digits(row['ratio'])}"
                if math.isfinite(row["lower"]):
                    axis.plot([row["lower"], row["upper"]], [at, at], color=look.color, linewidth=2)
                    text += f" ({digits(row['lower'])} to {digits(row['upper'])})"
                axis.plot(row["ratio"], at, look.marker, color=look.color, linestyle="none")
                row_text(axis, place, f"{text}, n = {row['n']}")
            axis.set_title(condition(group, *PANEL), loc="left")
            axis.set_xlabel("Optimizer step, times AdamW's")
            if wide(values):
                plain_log(axis)
        shared(axes)
    return figure
