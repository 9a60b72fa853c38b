"""Figure layout: one column, 3.4 inches wide with text of 8 points, so that half a page holds one.

Positions are computed in inches; no layout engine runs, which is most of a report's build time.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from reports.data.text import MINUS, digits
from reports.figures.style import GRID, INK, WARN, tidied

WIDTH = 3.4  # inches
TEXT = 8.0  # points
TITLE, TICKS, LINE = 0.25, 0.44, 0.155  # inches: above an axes, below it, one line of a legend
ROW = 0.36  # inches a row of a chart by rows: its text and its bar
RIGHT = 0.17  # half a tick's label
LETTER, LETTERS = 0.072, 5  # inches; letters of ticks for which the left margins have room
SPREAD = 6.0  # times this or more from the smallest to the largest: a log axis
MOST_TICKS = 5  # named values along an axis; more are named by decades


@contextmanager
def narrow() -> Iterator[None]:
    """Fonts and lines of a figure one column wide, for the duration of one drawing."""
    settings: Any = {
        "font.size": TEXT,
        "axes.titlesize": TEXT,
        "axes.titleweight": "bold",
        "axes.titlepad": 4.0,
        "axes.titley": 1.0,  # else matplotlib measures all texts around an axes to place its title
        "axes.labelsize": TEXT,
        "axes.labelpad": 2.0,
        "axes.edgecolor": INK,
        "axes.axisbelow": True,
        "xtick.labelsize": TEXT,
        "ytick.labelsize": TEXT,
        "legend.fontsize": TEXT,
        "legend.frameon": False,
        "legend.handlelength": 2.4,
        "legend.labelspacing": 0.25,
        "legend.borderpad": 0.0,
        "lines.linewidth": 1.3,
        "lines.markersize": 4.0,
        "svg.hashsalt": "reports",
        "svg.fonttype": "none",  # text stays text: smaller, selectable, quicker to write
    }
    with mpl.rc_context(settings):
        yield


def column(
    heights: Sequence[float], legends: Sequence[int], left: float
) -> tuple[Figure, list[Axes]]:
    """Axes below one another, `heights` inches high, with room for `legends` lines below each."""
    below = [TICKS + (0.06 + LINE * lines if lines else 0.0) for lines in legends]
    total = sum(heights) + sum(below) + TITLE * len(heights) + 0.06
    figure = Figure(figsize=(WIDTH, total))
    axes, top = [], total
    for height, under in zip(heights, below, strict=True):
        bottom = top - TITLE - height
        box = (left / WIDTH, bottom / total, (WIDTH - left - RIGHT) / WIDTH, height / total)
        axes.append(figure.add_axes(box))
        top = bottom - under
    return figure, tidied(axes)


def plots(count: int, legends: Sequence[int], height: float = 1.9) -> tuple[Figure, list[Axes]]:
    """A column of ordinary plots with values at the left."""
    figure, axes = column([height] * count, legends, left=0.56)
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.yaxis.set_major_locator(MaxNLocator(5))
    return figure, axes


def roomy(figure: Figure) -> Figure:
    """The figure with axes narrowed from the left where ticks would push their label out of it."""
    for axis in figure.axes:
        low, high = sorted(axis.get_ylim())
        ticks = [tick for tick in axis.get_yticks() if low <= tick <= high]
        texts = axis.yaxis.get_major_formatter().format_ticks(ticks)
        widths = [len(text) + text.count(MINUS) for text in texts]  # a minus is twice as wide
        extra = max(widths, default=0) - LETTERS
        if axis.get_ylabel() and extra > 0:
            share, box = LETTER * extra / figure.get_figwidth(), axis.get_position()
            axis.set_position((box.x0 + share, box.y0, box.width - share, box.height))
    return figure


def rows(counts: Sequence[int], legend: int) -> tuple[Figure, list[Axes]]:
    """A column of charts by rows, whose texts stand above their marks; a legend below the last."""
    legends = [0] * (len(counts) - 1) + [legend]
    figure, axes = column([ROW * count + 0.08 for count in counts], legends, left=0.16)
    for axis, count in zip(axes, counts, strict=True):
        axis.set_ylim(-0.62, count - 0.38)
        axis.set_yticks([])
        axis.grid(False, axis="y")
        axis.spines["left"].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(5))
    return figure, axes


def row_text(axis: Axes, place: int, text: str, warning: str = "") -> None:
    """The text above a row; `warning` follows it in the colour of failures."""
    at = axis.get_yaxis_transform()
    paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.6}
    mark = axis.text(0.0, place + 0.26, text, va="center", ha="left", transform=at, zorder=9,
                     bbox=paper)  # fmt: skip
    if warning:
        axis.annotate(
            f"  {warning}", xy=(1, 0.5), xycoords=mark, va="center", ha="left", color=WARN, zorder=9
        )


def legend_below(axis: Axes, handles: Sequence[Any] = (), labels: Sequence[str] = ()) -> None:
    """A legend below the axis's label, one entry a line, flush with the figure's left edge."""
    if not labels:
        handles, labels = axis.get_legend_handles_labels()
    figure = axis.get_figure()
    if not labels or not isinstance(figure, Figure):
        return
    bottom = axis.get_position().y0 * figure.get_figheight()
    axis.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(0.06, bottom - TICKS),
        bbox_transform=figure.dpi_scale_trans, ncols=1, borderaxespad=0.0,
    )  # fmt: skip


def shared(axes: Sequence[Axes]) -> None:
    """One legend below the last axes with every label of all of them once."""
    unique: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        unique |= {label: mark for mark, label in zip(handles, labels, strict=True)}
    legend_below(axes[-1], list(unique.values()), list(unique))


def plain_log(axis: Axes, which: str = "x") -> None:
    """A log axis with plain numbers at 1, 2 and 5, or at the decades where it spans many."""
    low, high = axis.get_xlim() if which == "x" else axis.get_ylim()
    few = high / low < 60
    target = axis.xaxis if which == "x" else axis.yaxis
    target.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=6))
    target.set_major_formatter(lambda value, _: short_number(value))
    target.set_minor_formatter(NullFormatter())
    axis.grid(True, axis="both", which="major", color=GRID, linewidth=0.6)


def ticks_at(axis: Axes, places: Sequence[float]) -> None:
    """Ticks of a log axis at the values measured; of two that are too close the first is named."""
    low, high = (math.log(limit) for limit in axis.get_xlim())
    room = (high - low) / (2.0 * MOST_TICKS)
    names, last = [], -math.inf
    for place in places:
        clear = math.log(place) - last >= room
        names.append(f"{place:,.0f}" if clear else "")
        last = math.log(place) if clear else last
    axis.set_xticks(places, names)


def short_number(value: float) -> str:
    """Ticks without trailing zeros: 0.001, 0.5, 20, 3,000."""
    if value >= 1000:
        return f"{value:,.0f}"
    text = digits(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def wide(values: pd.Series) -> bool:
    """Whether positive values spread so far that a log axis shows them better."""
    positive = values[values > 0]
    return bool(len(positive)) and float(positive.max()) > SPREAD * float(positive.min())
