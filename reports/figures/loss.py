"""Figures on loss: curves, paired differences, final values. Means are over finished cells."""

import math
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from reports.data.curves import Curves, trained
from reports.data.identity import TOKEN_LOSS
from reports.data.load import BASELINE, each
from reports.data.report import Report
from reports.data.text import TIMES, signed
from reports.data.values import PANEL, condition, conditions, setting
from reports.figures.layout import legend_below, narrow, plots, row_text, rows
from reports.figures.panels import counts, present, rows_of
from reports.figures.registry import Drawn, ids
from reports.figures.style import INK, WARN, Style, styles
from reports.tables.runs import LOSS

AXES = {"tokens": ("Training tokens, millions", 1e6), "train_seconds": ("Training time, s", 1.0)}


def figures(report: Report) -> list[Drawn]:
    """Curves, paired difference and final values, where there are any."""
    runs, curves, baseline, margin = report.shown, report.curves, report.baseline, report.margin
    # Classifiers have another loss, and folds beside seeds: a table of their own.
    shown = trained(runs[runs["task"] != "classify"], curves)
    found: list[Drawn] = []
    for name, x, title in (
        ("loss_tokens", "tokens", "Loss against tokens"),
        ("loss_seconds", "train_seconds", "Loss against seconds"),
    ):
        if not shown.empty:
            caption = (
                "Mean held-out loss over n seeds, nats/token, with 95 % t bands where n > 2; the "
                "legend has the final mean. Of a sweep over rates only the best of each optimizer "
                "and AdamW's own are shown. Losses above those after the first fifth are cut off."
            )
            caption += " Time excludes evaluation and logging." if x != "tokens" else ""
            if setting(shown, "task", "final_eval_tokens").notna().any():
                caption += " Verdicts and tables rest on a last evaluation over more tokens."
            draw = partial(loss_curves, runs, curves, x)
            found.append(Drawn(LOSS, name, title, caption, draw, ids(shown)))
    pairs = paired_groups(shown, baseline)
    if pairs:
        caption = (
            f"Held-out loss minus AdamW's, paired by seed, nats/token, below 0 is better. Dashed: "
            f"the margin of {margin:g} nats. Bands, where n > 1, are two-sided 95 % t intervals; "
            "verdicts use the one-sided bound at the end."
        )
        draw = partial(paired_difference, runs, curves, margin, baseline)
        cells = ids(pd.concat(pairs))
        found.append(Drawn(LOSS, "loss_difference", "Paired difference", caption, draw, cells))
    finals = runs[runs["task"].isin(TOKEN_LOSS)]
    if finals["final_eval_loss"].notna().any():
        caption = (
            "Every seed is a mark, nats/token; bars are the mean and its 95 % t interval. What "
            "did not finish stands beside the name."
        )
        draw = partial(final_losses, runs)
        found.append(Drawn(LOSS, "final_loss", "Final loss", caption, draw, ids(finals)))
    return found


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


def paired_difference(
    runs: pd.DataFrame, curves: Curves, margin: float, baseline: str = BASELINE
) -> Figure:
    """Held-out loss minus the baseline's at the same step, paired by seed, with the margin."""
    looks = styles(runs)
    groups = paired_groups(trained(runs, curves), baseline)
    legends = [group["variant"].nunique() for group in groups]  # the margin stands for the baseline
    with narrow():
        figure, axes = plots(len(groups), legends, height=2.0)
        for axis, group in zip(axes, groups, strict=True):
            spread: list[float] = []
            for variant, look in looks.items():
                cells = group[(group["variant"] == variant) & (group["optimizer"] != baseline)]
                table, x = differences(cells, group[group["optimizer"] == baseline], curves)
                if not table.empty:
                    stat = band(table)
                    final = f"{look.label}  {signed(stat['mean'].iloc[-1])}  (n = {table.shape[1]})"
                    draw_line(axis, look, x, stat, len(spread), final)
                    late = stat.iloc[len(stat) // 2 :]
                    spread += [late["lower"].min(), late["upper"].max()]
            finish_difference(axis, margin, spread)
            axis.set_title(condition(group, *PANEL), loc="left")
    return figure


def finish_difference(axis: Axes, margin: float, spread: list[float]) -> None:
    """Zero line, margin line, limits that fit the later half, labels."""
    axis.axhline(0, color=INK, linewidth=1)
    axis.axhline(margin, color=WARN, linestyle=(0, (6, 3)), linewidth=1.3, label="claim's margin")
    low, high = min([*spread, -margin / 2, 0]), max([*spread, 1.3 * margin])
    pad = 0.06 * (high - low)
    axis.set_ylim(low - pad, high + pad)
    axis.set(xlabel=AXES["tokens"][0], ylabel="Loss minus AdamW's, nats/token")
    legend_below(axis)


def paired_groups(shown: pd.DataFrame, baseline: str) -> list[pd.DataFrame]:
    """Conditions in which the baseline and another optimizer share a finished seed."""
    done = shown[shown["status"] == "done"]
    found = []
    for group in conditions(done, [*PANEL, "data_hash", "code_hash", "device"]):
        base = group[group["optimizer"] == baseline]
        rest = group[group["optimizer"] != baseline]
        if base["variant"].nunique() == 1 and rest["seed"].isin(base["seed"]).any():
            found.append(group)
    return found


def differences(
    cells: pd.DataFrame, base: pd.DataFrame, curves: Curves
) -> tuple[pd.DataFrame, pd.Series]:
    """Paired differences (rows steps, columns cells) and the millions of tokens at those steps."""
    seeds = ["model_seed", "data_seed"]
    pairs = cells[[*seeds, "id"]].merge(base[[*seeds, "id"]], on=seeds, suffixes=("", "_base"))
    if pairs.empty:
        return pd.DataFrame(), pd.Series(dtype=float)
    mine = curves.of(pairs["id"])
    other = curves.of(pairs["id_base"])
    steps = mine.index.intersection(other.index)
    table = pd.DataFrame(
        {row.id: mine.loc[steps, row.id] - other.loc[steps, row.id_base] for row in each(pairs)}
    )
    tokens = curves.of(pairs["id"], "tokens").loc[steps].mean(axis=1)
    return table, tokens / AXES["tokens"][1]


def final_losses(runs: pd.DataFrame) -> Figure:
    """Final held-out loss, one mark a seed, with mean and 95 % interval, a panel a condition."""
    looks = styles(runs)
    shown = runs[runs["task"].isin(TOKEN_LOSS)]
    shown = shown[shown.groupby(PANEL)["final_eval_loss"].transform("count") > 0]
    groups = conditions(shown, PANEL)
    with narrow():
        figure, axes = rows(counts(groups), legend=0)
        for axis, group in zip(axes, groups, strict=True):
            for place, (variant, cells) in enumerate(rows_of(group, looks)):
                draw_final(axis, place, cells, looks[variant])
            axis.set_xlabel("Final held-out loss, nats/token")
            axis.set_title(condition(group, *PANEL), loc="left")
    return figure


def draw_final(axis: Axes, place: int, cells: pd.DataFrame, look: Style) -> None:
    """Every seed of one optimizer as a mark, mean and interval; failures beside its name."""
    values, at = cells.loc[cells["status"] == "done", "final_eval_loss"].dropna(), place - 0.15
    text = look.label
    spread = np.linspace(-0.1, 0.1, len(values)) if len(values) > 1 else np.zeros(len(values))
    axis.plot(
        values, at + spread, look.marker, color=look.color, markersize=4.5, alpha=0.75,
        markeredgecolor="white", markeredgewidth=0.4,
    )  # fmt: skip
    if len(values):
        stat = band(values.to_frame().T).iloc[0]
        text += f"  {stat['mean']:.4f}"
        if len(values) > 1:
            axis.plot([stat["mean"]] * 2, [at - 0.2, at + 0.2], color=INK, linewidth=1.8)
            axis.hlines(at, stat["lower"], stat["upper"], color=INK, linewidth=1.1)
            text += f" \u00b1 {stat['upper'] - stat['mean']:.4f}"
    failed = cells[cells["status"] != "done"]["status"].value_counts()
    row_text(
        axis, place, text, ", ".join(f"{TIMES} {count} {name}" for name, count in failed.items())
    )
