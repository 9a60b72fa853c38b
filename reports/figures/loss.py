"""Figures on loss: curves, paired differences, final values. Means are over finished cells."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from reports.data.load import each
from reports.figures.layout import legend_below, narrow, plots
from reports.figures.style import WARN, Style, condition, conditions, styles

PANEL = ["model", "seq_len", "precision"]
LOSS = "eval/loss"
AXES = {"tokens": ("Training tokens, millions", 1e6), "train_seconds": ("Training time, s", 1.0)}


class Curves:
    """Held-out loss curves by cell, pivoted once: a report asks for them some hundred times."""

    def __init__(self, curves: pd.DataFrame) -> None:
        """From the table of `reports.data.load`; of a step logged twice the last value counts."""
        chosen = curves[curves["key"] == LOSS].drop_duplicates(["step", "id"], keep="last")
        self.tables = {
            name: chosen.pivot(index="step", columns="id", values=name)
            for name in ("value", "tokens", "train_seconds")
        }
        self._ones: dict[tuple[str, str], pd.Series] = {}

    def of(self, ids: pd.Series, column: str = "value") -> pd.DataFrame:
        """`column` with cells as columns; rows are the steps that every one of them reached."""
        return self.tables[column].reindex(columns=list(ids)).dropna()

    def one(self, cell: str, column: str = "value") -> pd.Series:
        """`column` of one cell by step."""
        key = (cell, column)
        if key not in self._ones:
            self._ones[key] = self.tables[column][cell].dropna()
        return self._ones[key]


def trained(runs: pd.DataFrame, curves: Curves) -> pd.DataFrame:
    """The runs that left a held-out loss curve."""
    return runs[runs["id"].isin(set(curves.tables["value"].columns))]


def band(table: pd.DataFrame, least: int = 2) -> pd.DataFrame:
    """Mean and 95 % t interval over the columns (seeds) of `table`, row by row (steps).

    Below `least` columns the interval is the mean alone.
    """
    n = table.shape[1]
    mean = table.mean(axis=1)
    if n < max(least, 2):
        return pd.DataFrame({"mean": mean, "lower": mean, "upper": mean})
    half = stats.t.ppf(0.975, n - 1) * table.std(axis=1, ddof=1) / math.sqrt(n)
    return pd.DataFrame({"mean": mean, "lower": mean - half, "upper": mean + half})


def loss_curves(runs: pd.DataFrame, curves: Curves, x: str = "tokens") -> Figure:
    """Held-out loss (nats/token) against `x` ("tokens" or "train_seconds"), a panel a condition."""
    looks = styles(runs)
    shown = trained(runs, curves)
    groups = conditions(shown, PANEL)
    legends = [len(present(group, looks)) for group in groups]
    with narrow():
        figure, axes = plots(len(groups), legends, height=2.2)
        for axis, group in zip(axes, groups, strict=True):
            draw_losses(axis, group, curves, looks, x)
            axis.set_title(condition(group, *PANEL), loc="left")
            axis.set_xlabel(AXES[x][0])
            axis.set_ylabel("Held-out loss, nats/token")
            legend_below(axis)
    return figure


def present(group: pd.DataFrame, looks: dict[str, Style]) -> list[str]:
    """The variants of one condition in the order of the looks."""
    names = set(group["variant"])
    return [variant for variant in looks if variant in names]


def draw_losses(
    axis: Axes, group: pd.DataFrame, curves: Curves, looks: dict[str, Style], x: str
) -> None:
    """All optimizers of one condition: mean, band, final value in the legend."""
    lines: list[pd.DataFrame] = []
    unfinished = 0
    for variant in present(group, looks):
        look, cells = looks[variant], group[group["variant"] == variant]
        done = cells.loc[cells["status"] == "done", "id"]
        if len(done):
            losses = curves.of(done)
            across = curves.of(done, x).mean(axis=1) / AXES[x][1]
            # The interval of two seeds is thirteen times as wide as what they show of their spread.
            stat = band(losses, least=3)
            lines.append(stat.assign(x=across))
            final = f"{look.label}  {stat['mean'].iloc[-1]:.4f}  (n = {len(done)})"
            draw_line(axis, look, across, stat, len(lines), final)
        for row in each(cells[cells["status"] != "done"]):
            draw_unfinished(axis, look, curves, row, x, unfinished % 6)
            unfinished += 1
        if not len(done):
            statuses = ", ".join(dict.fromkeys(cells["status"]))
            axis.plot([], [], color=look.color, linestyle=look.line, marker="x",
                      markeredgecolor=WARN, label=f"{look.label}  {statuses}")  # fmt: skip
    fit_values(axis, lines)


def fit_values(axis: Axes, lines: list[pd.DataFrame]) -> None:
    """Values after the first fifth of the run, whose fall would flatten all the rest."""
    late = [line[line["x"] >= 0.2 * line["x"].max()] for line in lines]
    late = [part if len(part) > 1 else line for part, line in zip(late, lines, strict=True)]
    numbers = np.concatenate([line[["mean", "lower", "upper"]].to_numpy().ravel() for line in late]
                             or [np.empty(0)])  # fmt: skip
    numbers = numbers[np.isfinite(numbers)]
    if len(numbers):
        pad = 0.06 * (numbers.max() - numbers.min()) or 0.05
        axis.set_ylim(numbers.min() - pad, numbers.max() + pad)


def draw_line(
    axis: Axes, look: Style, x: pd.Series, stat: pd.DataFrame, place: int, label: str | None = None
) -> None:
    """One mean curve with its band; marks of the `place`-th curve stand between the others'."""
    every = max(1, len(x) // 6)
    axis.fill_between(x, stat["lower"], stat["upper"], color=look.color, alpha=0.16, linewidth=0)
    axis.plot(
        x, stat["mean"], color=look.color, linestyle=look.line, marker=look.marker,
        markevery=(place % every, every), label=label,
    )  # fmt: skip


def draw_unfinished(axis: Axes, look: Style, curves: Curves, cell: Any, x: str, place: int) -> None:
    """A cell that did not finish: thin, up to its last finite value, and a cross at its end."""
    loss = curves.one(cell.id)
    loss = loss[np.isfinite(loss)]
    if loss.empty:
        return
    across = curves.one(cell.id, x).loc[loss.index] / AXES[x][1]
    axis.plot(across, loss, color=look.color, linewidth=0.8, alpha=0.7)
    at = axis.get_xaxis_transform()  # at the upper edge: the loss itself is mostly far above
    height = 0.97 - 0.07 * place
    axis.plot(across.iloc[-1], height, "x", color=WARN, markersize=6, markeredgewidth=1.6,
              transform=at, clip_on=False, zorder=9)  # fmt: skip
    axis.annotate(
        f"{look.label}, seed {cell.seed}: {cell.status}", (across.iloc[-1], height), xycoords=at,
        xytext=(6, 0), textcoords="offset points", ha="left", va="center", color=WARN,
        annotation_clip=False,
    )  # fmt: skip
