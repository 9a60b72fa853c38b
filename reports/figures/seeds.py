"""Figures on loss seed by seed: paired differences to the baseline, and final values."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.data.load import BASELINE, TOKEN_LOSS, each
from reports.data.text import TIMES, signed
from reports.figures.layout import legend_below, narrow, plots, row_text, rows
from reports.figures.loss import AXES, PANEL, Curves, band, draw_line, trained
from reports.figures.memory import counts, rows_of
from reports.figures.style import INK, WARN, Style, condition, conditions, styles


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
