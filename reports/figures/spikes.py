"""Loss spikes of every run: when they came and how deep they were."""

from collections.abc import Sequence
from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.data.rates import SPLIT
from reports.data.report import Report
from reports.data.text import plural
from reports.data.values import MOST_PANELS, PANEL, condition, conditions
from reports.figures.layout import legend_below, narrow, row_text, rows
from reports.figures.panels import counts, rows_of
from reports.figures.registry import Drawn
from reports.figures.style import GRID, INK, WARN, Style, styles
from reports.tables.sensitivity import STABILITY, spikes_of

DEPTHS = (0.3, 1.0, 3.0)  # nats, of the legend
AREA = 16.0  # points squared for a nat
HEIGHT = 0.36  # of a row, over which its seeds are spread


def figures(report: Report) -> list[Drawn]:
    """When spikes came, where a study's cells list at least one."""
    groups = spiking(report.arms)
    if not groups:
        return []
    cells = pd.concat(groups)
    caption = (
        "Each grey line is a run from its first step to its last, seeds below one another; a disc "
        "is a loss spike, its area the depth (nats above the losses before). A red cross ends a "
        "run that diverged or failed. In brackets all spikes of an optimizer and its runs."
    )
    draw, shown = partial(spike_rows, groups), tuple(str(cell) for cell in cells["id"])
    return [Drawn(STABILITY, "spikes", "Loss spikes", caption, draw, shown)]


def spiking(cells: pd.DataFrame) -> list[pd.DataFrame]:
    """Conditions in which a run spiked; of many those with the most spikes."""
    groups = [] if cells.empty else conditions(cells, [*PANEL, *SPLIT])
    found = [group for group in groups if spikes_of(group)]
    most = sorted(found, key=lambda group: -len(spikes_of(group)))[:MOST_PANELS]
    return [group for group in found if any(group is kept for kept in most)]


def spike_rows(groups: Sequence[pd.DataFrame]) -> Figure:
    """A panel for each condition, a row for each optimizer, a line for each seed."""
    looks = styles(pd.concat(list(groups)))
    with narrow():
        figure, axes = rows(counts(list(groups)), legend=len(DEPTHS))
        for axis, group in zip(axes, groups, strict=True):
            for place, (name, cells) in enumerate(rows_of(group, looks)):
                draw_runs(axis, place, cells, looks[name])
            axis.set_title(condition(group, *PANEL), loc="left")
            axis.set_xlabel("Optimizer step")
            axis.set_xlim(left=0)
        marks = [
            Line2D([], [], marker="o", linestyle="none", color=INK, alpha=0.7, markeredgewidth=0,
                   markersize=(AREA * depth) ** 0.5, label=f"{depth:g} nats deep")
            for depth in DEPTHS
        ]  # fmt: skip
        legend_below(axes[-1], marks, [str(mark.get_label()) for mark in marks])
    return figure


def draw_runs(axis: Axes, place: int, cells: pd.DataFrame, look: Style) -> None:
    """The runs of one optimizer."""
    total, ordered = 0, cells.sort_values("data_seed")
    for index, run in enumerate(ordered.to_dict("records")):
        at = place + 0.08 - HEIGHT * (index + 0.5) / len(ordered) - HEIGHT / 4
        last = run["planned_steps"] if run["status"] == "done" else run["steps"]
        axis.plot([0, last], [at, at], color=GRID, linewidth=0.8, zorder=1)
        if run["status"] != "done":
            axis.plot(last, at, "x", color=WARN, markersize=4, zorder=4)
        spikes = spikes_of(ordered.iloc[[index]])
        total += len(spikes)
        axis.scatter(
            [spike["step"] for spike in spikes], [at] * len(spikes),
            s=[AREA * max(spike["depth"], 0.0) for spike in spikes],
            color=look.color, alpha=0.8, linewidths=0, zorder=3,
        )  # fmt: skip
    counted = f"{plural(total, 'spike')} in {plural(len(ordered), 'run')}"
    row_text(axis, place, f"{look.label}  ({counted})")
