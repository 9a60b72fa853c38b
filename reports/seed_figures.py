"""Figures on loss seed by seed: paired differences to the baseline, and final values."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.load import BASELINE, each
from reports.loss_figures import AXES, PANEL, band, draw_line, seeds_table, trained
from reports.style import (
    INK,
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
from reports.text import TIMES, signed


def paired_difference(
    runs: pd.DataFrame, curves: pd.DataFrame, margin: float, baseline: str = BASELINE
) -> Figure:
    """Held-out loss minus the baseline's at the same step, paired by seed, with the margin."""
    looks = styles(runs)
    groups = paired_groups(trained(runs, curves), baseline)
    with drawing():
        figure, axes = panels(len(groups), 5.4, 4.4)
        for axis, group in zip(axes, groups, strict=True):
            spread: list[float] = []
            for variant, look in looks.items():
                cells = group[(group["variant"] == variant) & (group["optimizer"] != baseline)]
                table, x = differences(cells, group[group["optimizer"] == baseline], curves)
                if not table.empty:
                    stat = band(table)
                    final = f"{look.label}  {signed(stat['mean'].iloc[-1])}  (n = {table.shape[1]})"
                    draw_line(axis, look, x, stat, len(spread), final)
                    late = stat.iloc[len(stat) // 3 :]
                    spread += [late["lower"].min(), late["upper"].max()]
            finish_difference(axis, margin, spread)
            axis.set_title(condition(group, *PANEL), loc="left")
        name = looks_label(looks, baseline)
        heading(figure, f"Loss minus {name}'s, paired by seed (below 0: better)")
        note(figure, failures(runs[runs["task"] == "pretrain"], looks))
    return figure


def looks_label(looks: dict[str, Style], name: str) -> str:
    """The label of an optimizer, or its name where only variants of it ran."""
    return looks[name].label if name in looks else name


def finish_difference(axis: Axes, margin: float, spread: list[float]) -> None:
    """Zero line, margin line, limits that fit the later two thirds, labels."""
    axis.axhline(0, color=INK, linewidth=1)
    axis.axhline(margin, color=WARN, linestyle=(0, (6, 3)), linewidth=1.3, label="claim's margin")
    low, high = min([*spread, -margin / 2, 0]), max([*spread, 1.3 * margin])
    pad = 0.06 * (high - low)
    axis.set_ylim(low - pad, high + pad)
    axis.set(xlabel=AXES["tokens"][0], ylabel="Difference, nats/token")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=1, handlelength=2.6)


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
    cells: pd.DataFrame, base: pd.DataFrame, curves: pd.DataFrame
) -> tuple[pd.DataFrame, pd.Series]:
    """Paired differences (rows steps, columns cells) and the millions of tokens at those steps."""
    seeds = ["model_seed", "data_seed"]
    pairs = cells[[*seeds, "id"]].merge(base[[*seeds, "id"]], on=seeds, suffixes=("", "_base"))
    if pairs.empty:
        return pd.DataFrame(), pd.Series(dtype=float)
    mine = seeds_table(curves, pairs["id"])
    other = seeds_table(curves, pairs["id_base"])
    steps = mine.index.intersection(other.index)
    table = pd.DataFrame(
        {row.id: mine.loc[steps, row.id] - other.loc[steps, row.id_base] for row in each(pairs)}
    )
    tokens = seeds_table(curves, pairs["id"], "tokens").loc[steps].mean(axis=1)
    return table, tokens / AXES["tokens"][1]


def final_losses(runs: pd.DataFrame) -> Figure:
    """Final held-out loss, one mark a seed, with mean and 95 % interval, a panel a condition."""
    looks = styles(runs)
    shown = runs[runs["task"] == "pretrain"]
    shown = shown[shown.groupby(PANEL)["final_eval_loss"].transform("count") > 0]
    groups = conditions(shown, PANEL)
    with drawing():
        figure, axes = panels(len(groups), 5.4, 3.6)
        for axis, group in zip(axes, groups, strict=True):
            draw_final(axis, group, looks)
        heading(figure, "Final held-out loss: every seed, mean and 95 % interval")
        note(figure, failures(shown, looks))
    return figure


def draw_final(axis: Axes, group: pd.DataFrame, looks: dict[str, Style]) -> None:
    """Dots of one condition, optimizers from top to bottom; failures stand at the right edge."""
    present = [variant for variant in looks if (group["variant"] == variant).any()]
    for row, variant in enumerate(reversed(present)):
        cells, look = group[group["variant"] == variant], looks[variant]
        values = cells.loc[cells["status"] == "done", "final_eval_loss"].dropna()
        spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(len(values))
        axis.plot(
            values, row + spread, look.marker, color=look.color, markersize=6, alpha=0.75,
            markeredgecolor="white", markeredgewidth=0.5,
        )  # fmt: skip
        if len(values) > 1:
            stat = band(values.to_frame().T)
            mean = stat["mean"].iloc[0]
            axis.plot([mean, mean], [row - 0.33, row + 0.33], color=INK, linewidth=2)
            axis.hlines(row, stat["lower"].iloc[0], stat["upper"].iloc[0], color=INK, linewidth=1.2)
        failed = cells[cells["status"] != "done"]["status"].value_counts()
        text = ", ".join(f"{TIMES} {count} {status}" for status, count in failed.items())
        axis.text(0.99, row + 0.25, text, color=WARN, fontsize=9, ha="right",
                  transform=axis.get_yaxis_transform())  # fmt: skip
    labels = [looks[variant].label for variant in reversed(present)]
    axis.set_yticks(range(len(present)), labels)
    axis.set_ylim(-0.6, len(present) - 0.4)
    axis.set_xlabel("Final held-out loss, nats/token")
    axis.set_title(condition(group, *PANEL), loc="left")
