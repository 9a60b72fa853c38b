"""Memory over model sizes and sequence lengths, and the share of the state in it."""

import math
from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.data.report import Report
from reports.data.text import GIB
from reports.data.values import condition, metric
from reports.figures.layout import MOST_TICKS, column, narrow, plain_log, shared, ticks_at, wide
from reports.figures.registry import Drawn, ids
from reports.figures.style import INK, WARN, Style, styles
from reports.tables.lengths import SCALES, scaling_groups, shares
from reports.tables.runs import MEMORY

SIZES = {
    "peak_bytes": "Peak, GiB",
    "optimizer_state_bytes": "Optimizer state, GiB",
}


def figures(report: Report) -> list[Drawn]:
    """Peaks and state over sizes, where one optimizer was measured at several."""
    runs, baseline, found = report.shown, report.baseline, list[Drawn]()
    for x, name, title in (
        ("parameters", "memory_models", "Memory over model sizes"),
        ("seq_len", "memory_seq_len", "Memory over sequence lengths"),
    ):
        groups = scaling_groups(runs, x)
        if groups:
            cells = pd.concat(groups)
            caption = (
                "Measured peaks (and over models the counted state), GiB; a cross at the upper "
                "edge is a cell that did not finish. Of many conditions those of the longest "
                "sequences or the largest models are shown."
            )
            found.append(
                Drawn(MEMORY, name, title, caption, partial(scaling, runs, x), ids(cells), 1)
            )
    table = shares(runs, baseline)
    if not table.empty:
        caption = (
            "The optimizer's state as counted, in percent of the measured peak of forward, "
            "backward and update together. A sequence's activations grow with its length, the "
            "state does not. Medians over finished cells; no interval."
        )
        shown = tuple(cell for row in table["cells"] for cell in row.split())
        draw, title = partial(optimizer_share, runs), "Share of the state over sequence lengths"
        found.append(Drawn(MEMORY, "state_share", title, caption, draw, shown, 1))
    return found


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


def optimizer_share(runs: pd.DataFrame) -> Figure:
    """Counted state over the measured peak, percent, against tokens a sequence (log axes)."""
    looks, table = styles(runs), shares(runs)
    groups = [group for _, group in table.groupby(["model", "precision"], sort=False)]
    with narrow():
        entries = int(table["variant"].nunique())
        figure, axes = column([1.9] * len(groups), [0] * (len(groups) - 1) + [entries], left=0.56)
        for axis, group in zip(axes, groups, strict=True):
            draw_shares(axis, group, looks)
            axis.set_title(condition(group, "model", "precision"), loc="left")
        shared(axes)
    return figure


def draw_shares(axis: Axes, group: pd.DataFrame, looks: dict[str, Style]) -> None:
    """A line for each optimizer of one panel."""
    for variant, look in looks.items():
        line = group[group["variant"] == variant].set_index("seq_len")["state_percent"]
        if len(line):
            axis.plot(
                line.index, line, color=look.color, marker=look.marker, linestyle=look.line,
                label=look.label,
            )  # fmt: skip
    places = sorted(set(group["seq_len"]))
    axis.set_xscale("log")
    axis.set_yscale("log")
    plain_log(axis)
    plain_log(axis, "y")
    if len(places) <= MOST_TICKS:
        ticks_at(axis, places)
    axis.set_xlabel("Sequence length, tokens (log scale)")
    axis.set_ylabel("State in the peak, % (log scale)")
