"""Figures on loss: curves, paired differences, final values. Means are over finished cells."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from reports.load import each
from reports.style import (
    WARN,
    Style,
    condition,
    conditions,
    drawing,
    failures,
    heading,
    note,
    panels,
    styles,
)

PANEL = ["model", "seq_len", "precision"]
LOSS = "eval/loss"
AXES = {"tokens": ("Training tokens, millions", 1e6), "train_seconds": ("Training time, s", 1.0)}
ZOOM_FROM = 0.7


def trained(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The runs that left a held-out loss curve."""
    return runs[runs["id"].isin(curves.loc[curves["key"] == LOSS, "id"])]


def band(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % t interval over the columns (seeds) of `table`, row by row (steps)."""
    n = table.shape[1]
    mean = table.mean(axis=1)
    if n < 2:
        return pd.DataFrame({"mean": mean, "lower": mean, "upper": mean})
    half = stats.t.ppf(0.975, n - 1) * table.std(axis=1, ddof=1) / math.sqrt(n)
    return pd.DataFrame({"mean": mean, "lower": mean - half, "upper": mean + half})


def seeds_table(curves: pd.DataFrame, ids: pd.Series, column: str = "value") -> pd.DataFrame:
    """`column` of the held-out loss curves: rows are steps that every cell reached, columns ids."""
    chosen = curves[(curves["key"] == LOSS) & curves["id"].isin(ids)]
    unique = chosen.drop_duplicates(["step", "id"], keep="last")
    return unique.pivot(index="step", columns="id", values=column).dropna()


def loss_curves(runs: pd.DataFrame, curves: pd.DataFrame, x: str = "tokens") -> Figure:
    """Held-out loss (nats/token) against `x` ("tokens" or "train_seconds"), a panel a condition."""
    looks = styles(runs)
    shown = trained(runs, curves)
    groups = conditions(shown, PANEL)
    with drawing():
        figure, axes = panels(len(groups), 5.4, 4.6)
        for axis, group in zip(axes, groups, strict=True):
            draw_losses(axis, group, curves, looks, x)
            axis.set_title(condition(group, *PANEL), loc="left")
            axis.set_xlabel(AXES[x][0])
            axis.set_ylabel("Held-out loss, nats/token")
        against = "training tokens" if x == "tokens" else "training time"
        heading(figure, f"Held-out loss against {against}")
        note(figure, failures(runs[runs["task"] == "pretrain"], looks))
    return figure


def draw_losses(
    axis: Axes, group: pd.DataFrame, curves: pd.DataFrame, looks: dict[str, Style], x: str
) -> None:
    """All optimizers of one condition: mean, band, final value in the legend, zoomed inset."""
    lines: list[tuple[Style, pd.Series, pd.DataFrame]] = []
    for variant, look in looks.items():
        cells = group[group["variant"] == variant]
        done = cells.loc[cells["status"] == "done", "id"]
        if len(done):
            losses = seeds_table(curves, done)
            across = seeds_table(curves, done, x).mean(axis=1) / AXES[x][1]
            stat = band(losses)
            lines.append((look, across, stat))
            final = f"{look.label}  {stat['mean'].iloc[-1]:.4f}  (n = {len(done)})"
            draw_line(axis, look, across, stat, len(lines), final)
    top = max((stat["mean"].max() for _, _, stat in lines), default=np.inf)
    for row in each(group[group["status"] != "done"]):
        draw_unfinished(axis, looks[row.variant], curves, row.id, x, top)
    if len(lines) > 1:
        zoom(axis, lines)
    if lines:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=1, handlelength=2.6)


def draw_line(
    axis: Axes, look: Style, x: pd.Series, stat: pd.DataFrame, place: int, label: str | None = None
) -> None:
    """One mean curve with its band; marks of the `place`-th curve stand between the others'."""
    every = max(1, len(x) // 6)
    axis.fill_between(x, stat["lower"], stat["upper"], color=look.color, alpha=0.18, linewidth=0)
    axis.plot(
        x,
        stat["mean"],
        color=look.color,
        linestyle=look.line,
        marker=look.marker,
        markersize=4.5,
        markevery=(place % every, every),
        linewidth=1.7,
        label=label,
    )


def draw_unfinished(
    axis: Axes, look: Style, curves: pd.DataFrame, cell: str, x: str, top: float
) -> None:
    """A cell that did not finish: thin, up to its last finite value, at most `top`; a cross."""
    curve = curves[(curves["key"] == LOSS) & (curves["id"] == cell)].sort_values("step")
    curve = curve[np.isfinite(curve["value"])]
    if curve.empty:
        return
    across, loss = curve[x] / AXES[x][1], curve["value"].clip(upper=top)
    axis.plot(across, loss, color=look.color, linewidth=0.9, alpha=0.7)
    axis.plot(
        across.iloc[-1:], loss.iloc[-1:], "x", color=WARN, markersize=9, markeredgewidth=2, zorder=9
    )


def zoom(axis: Axes, lines: list[tuple[Style, pd.Series, pd.DataFrame]]) -> None:
    """The end of the curves, enlarged in the empty upper right corner."""
    end = max(x.iloc[-1] for _, x, _ in lines)
    start = ZOOM_FROM * end
    inset = axis.inset_axes((0.43, 0.46, 0.56, 0.52))
    lows, highs = [], []
    for place, (look, x, stat) in enumerate(lines):
        draw_line(inset, look, x, stat, place)
        late = stat[x >= start]
        lows.append(late["mean"].min())
        highs.append(late["mean"].max())
    if not lows or not np.isfinite([*lows, *highs]).all():
        inset.remove()
        return
    pad = 0.12 * (max(highs) - min(lows)) or 0.01
    inset.set(xlim=(start, end * 1.01), ylim=(min(lows) - pad, max(highs) + pad))
    inset.tick_params(labelsize=8.5, labelbottom=False)
    inset.set_title("end of the schedule, enlarged", fontsize=8.5, loc="right", pad=2)
    inset.grid(True, color="#E6E6E6", linewidth=0.5)
