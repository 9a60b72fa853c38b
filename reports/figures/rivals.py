"""Figures of all optimizers side by side: state against loss, memory against throughput."""

import math
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.data.load import each
from reports.data.report import Report
from reports.data.text import number_text
from reports.data.values import PANEL, condition
from reports.figures.direct_labels import label_points
from reports.figures.layout import LINE, TICKS, narrow, plain_log, plots
from reports.figures.registry import Drawn
from reports.figures.style import INK, Style, styles
from reports.tables.rivals import ALIKE, SIDE_BY_SIDE, rivals

HEIGHT = 3.6  # inches
MOST_NAMES = 12  # beside their marks; more have numbers there and their names in a key below
COLUMNS, SPREAD, KEY_TEXT = 2, 1.62, 7.0  # of the key; inches between columns; points
FAR = 1.0  # nats above the best mean from which a loss is drawn at the upper edge
MIB = 2**20


def figures(report: Report) -> list[Drawn]:
    """State against loss and memory against throughput, where many optimizers trained alike."""
    runs = report.shown
    table = rivals(runs)
    if table.empty:
        return []
    cells = tuple(cell for row in table["cells"] for cell in row)
    caption = (
        "Mean final held-out loss over seeds, nats/token, against counted bytes of state per "
        "parameter; lines from the lowest to the highest seed. Dashed: those that no other beats "
        "in both. A loss far above the best stands at the upper edge with its number. Means of a "
        "few seeds: neighbours may well change places. Numbers run from the least state on."
    )
    draw, title = partial(pareto, table, runs), "State against loss"
    found = [Drawn(SIDE_BY_SIDE, "pareto", title, caption, draw, cells)]
    caption = (
        "Medians over cells: the highest memory of a training step above the process after its "
        "imports, and tokens a second over forward, backward and update. Processes ran one after "
        "another: orders of magnitude."
    )
    draw, title = partial(memory_speed, table, runs), "Peak memory against throughput"
    return [*found, Drawn(SIDE_BY_SIDE, "memory_speed", title, caption, draw, cells)]


def pareto(table: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """State bytes per parameter (log axis) against final loss, a panel a condition."""
    looks, groups = styles(runs), panels(table, ["state_bytes_per_parameter", "final_eval_loss"])
    with narrow():
        figure, axes = plots(len(groups), [key_lines(group) for group in groups], HEIGHT)
        for axis, group in zip(axes, groups, strict=True):
            draw_pareto(axis, group, looks)
            axis.set_title(condition(group, *PANEL), loc="left")
            axis.set(xlabel="Optimizer state, bytes per parameter (log scale)",
                     ylabel="Final held-out loss, nats/token")  # fmt: skip
    return figure


def memory_speed(table: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Peak memory against tokens a second, a panel a condition."""
    looks, groups = styles(runs), panels(table, ["peak_bytes", "tokens_per_second"])
    with narrow():
        figure, axes = plots(len(groups), [key_lines(group) for group in groups], HEIGHT)
        for axis, group in zip(axes, groups, strict=True):
            x, y = group["peak_bytes"] / MIB, group["tokens_per_second"] / 1000
            limits(axis, x, y)
            draw_marks(axis, group, x, y, looks)
            name_points(axis, x, y, labels(group, looks), group, looks)
            axis.set_title(condition(group, *PANEL), loc="left")
            axis.set(
                xlabel="Peak memory of a training step, MiB", ylabel="Thousands of tokens a second"
            )
    return figure


def key_lines(group: pd.DataFrame) -> int:
    """Lines of the key below a panel; none where names have room beside their marks."""
    return math.ceil(len(group) / COLUMNS) if len(group) > MOST_NAMES else 0


def name_points(
    axis: Axes,
    x: pd.Series,
    y: pd.Series,
    texts: list[str],
    group: pd.DataFrame,
    looks: dict[str, Style],
) -> None:
    """Names beside the marks; of many marks their numbers in the group, and a key below."""
    points = list(zip(x, y, strict=True))
    if not key_lines(group):
        label_points(axis, points, texts)
        return
    numbers = [str(number) for number in range(1, len(texts) + 1)]
    label_points(axis, points, numbers)
    figure = axis.get_figure()
    assert isinstance(figure, Figure)
    top = axis.get_position().y0 * figure.get_figheight() - TICKS - LINE / 2
    for index, (row, text) in enumerate(zip(each(group), texts, strict=True)):
        column, line = divmod(index, key_lines(group))
        left, look = 0.12 + SPREAD * column, looks[row.variant]
        at = top - LINE * line
        mark = Line2D([left], [at], marker=look.marker, color=look.color, markersize=5.5,
                      markeredgecolor="white", markeredgewidth=0.5, linestyle="none",
                      transform=figure.dpi_scale_trans)  # fmt: skip
        figure.add_artist(mark)
        figure.text(left + 0.1, at, f"{numbers[index]}  {text}", fontsize=KEY_TEXT, va="center",
                    transform=figure.dpi_scale_trans)  # fmt: skip


def panels(table: pd.DataFrame, needed: list[str]) -> list[pd.DataFrame]:
    """The rows of each condition that have both coordinates."""
    known = table.dropna(subset=needed)
    return [group for _, group in known.groupby(ALIKE, sort=False, dropna=False)]


def draw_pareto(axis: Axes, group: pd.DataFrame, looks: dict[str, Style]) -> None:
    """Marks with their spread over seeds, the rows that none dominates joined, and names."""
    x = group["state_bytes_per_parameter"]
    top = group["final_eval_loss"].min() + FAR
    y = group["final_eval_loss"].clip(upper=top)
    axis.set_xscale("log")
    limits(axis, x, y)
    plain_log(axis)
    axis.vlines(x, group["lowest_loss"].clip(upper=top), group["highest_loss"].clip(upper=top),
                color=INK, linewidth=0.8, alpha=0.5, zorder=2)  # fmt: skip
    front = group["frontier"] & (group["final_eval_loss"] <= top)
    axis.plot(x[front], y[front], color=INK, linewidth=1.0, linestyle=(0, (4, 2)), zorder=1)
    draw_marks(axis, group, x, y, looks)
    texts = [
        text if loss <= top else f"{text} ({number_text(loss, 2)})"
        for text, loss in zip(labels(group, looks), group["final_eval_loss"], strict=True)
    ]
    name_points(axis, x, y, texts, group, looks)


def labels(group: pd.DataFrame, looks: dict[str, Style]) -> list[str]:
    """The names of the rows."""
    return [looks[variant].label for variant in group["variant"]]


def limits(axis: Axes, x: pd.Series, y: pd.Series) -> None:
    """Room around the marks for their names; on a logarithmic axis in ratios."""
    is_log = axis.get_xscale() == "log"
    across = np.log(x) if is_log else x
    for values, shares, put in ((across, (0.12, 0.16), "x"), (y, (0.1, 0.1), "y")):
        low, high = float(values.min()), float(values.max())
        span = (high - low) or abs(high) or 1.0
        ends = (low - shares[0] * span, high + shares[1] * span)
        if put == "x":
            axis.set_xlim(*(np.exp(ends) if is_log else ends))
        else:
            axis.set_ylim(*ends)


def draw_marks(
    axis: Axes, group: pd.DataFrame, x: pd.Series, y: pd.Series, looks: dict[str, Style]
) -> None:
    """A mark for each optimizer in its own colour and form."""
    for row, across, up in zip(each(group), x, y, strict=True):
        look = looks[row.variant]
        axis.plot(across, up, look.marker, color=look.color, markersize=5.5, zorder=5,
                  markeredgecolor="white", markeredgewidth=0.5, clip_on=False)  # fmt: skip
