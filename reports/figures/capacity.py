"""The figure of what fits under a memory cap."""

import math
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.data.report import Report
from reports.data.text import TIMES, number_text
from reports.figures.layout import narrow, plain_log, row_text, rows, shared
from reports.figures.panels import counts, rows_of
from reports.figures.registry import Drawn
from reports.figures.style import INK, WARN, Style, styles
from reports.tables.capacity import (
    CAPACITY,
    KEYS,
    answer,
    capacity,
    capacity_groups,
    condition_text,
)


def figures(report: Report) -> list[Drawn]:
    """What fits under a cap, where a study searched for it."""
    table = capacity(report.runs)
    if table.empty:
        return []
    caption = (
        "The largest value that trained below the smallest that ran out of memory (cross), under "
        "the cap named above each panel, with the training throughput there. One search each; the "
        "true limit lies between bar and cross."
    )
    cells = tuple(cell for row in table["cells"] for cell in row)
    draw = partial(capacity_bars, report.runs, table)
    return [Drawn(CAPACITY, "capacity", "Capacity under a memory cap", caption, draw, cells)]


def capacity_bars(runs: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """The largest value that trained (bar) and the smallest that did not (cross), log axis."""
    looks = styles(runs)
    groups = list(capacity_groups(table))
    with narrow():
        figure, axes = rows(counts(groups), legend=2)
        for axis, group in zip(axes, groups, strict=True):
            found = group[["largest", "smallest_oom"]].to_numpy(float).ravel()
            values = [float(value) for value in found if math.isfinite(value)] or [1.0]
            low = max(min(values) / 2, 0.5)
            axis.set_xscale("log")
            axis.set_xlim(low, 1.3 * max(values))
            for place, (name, cells) in enumerate(rows_of(group, looks)):
                draw_capacity(axis, place, cells.iloc[0].to_dict(), looks[name], low)
            first = group.iloc[0].to_dict()
            axis.set_title(f"{condition_text(first)}, {first['cap']:g} GiB", loc="left")
            axis.set_xlabel(f"Largest {KEYS[first['key']]} (log scale)")
            plain_log(axis)
        shared(axes)
    return figure


def draw_capacity(axis: Axes, place: int, row: dict[Any, Any], look: Style, low: float) -> None:
    """One optimizer: its bar, where the next probe failed, and the tokens a second there."""
    at, warning = place - 0.15, ""
    if math.isfinite(row["largest"]):
        axis.barh(at, row["largest"] - low, 0.32, left=low, color=look.color, edgecolor=INK,
                  linewidth=0.4, label="largest that trained (colour: optimizer)")  # fmt: skip
        text = f"{look.label}  {answer(row)}"
        if math.isfinite(row["tokens_per_second"]):
            text += f",  {number_text(row['tokens_per_second'], 0)} tokens/s"
    else:
        text, warning = look.label, f"{TIMES} none fits"
    if math.isfinite(row["smallest_oom"]):
        axis.plot(row["smallest_oom"], at, "x", color=WARN, markersize=6, markeredgewidth=1.6,
                  linestyle="none", label="smallest that ran out of memory", zorder=5)  # fmt: skip
    if row["others"]:
        warning = f"{warning} {TIMES} {row['others']}".strip()
    row_text(axis, place, text, warning)
