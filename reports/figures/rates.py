"""The figure of final loss over learning rates."""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.data.load import BASELINE
from reports.data.rates import best_rates, rate_groups
from reports.data.report import Report
from reports.data.text import plural
from reports.data.values import PANEL, condition
from reports.figures.layout import legend_below, narrow, plain_log, plots
from reports.figures.loss import band
from reports.figures.panels import present
from reports.figures.registry import Drawn, ids
from reports.figures.style import INK, WARN, Style, styles
from reports.tables.sensitivity import SENSITIVITY

FAILED = {"diverged": "x", "oom": "s", "timeout": "d", "crashed": "*", "interrupted": "1"}
TOP = 0.2  # of the axes' height kept free for failed cells
FAR = 1.5  # nats above the best loss from which a finished cell is drawn at the edge as well


def figures(report: Report) -> list[Drawn]:
    """Final loss over learning rates, where an optimizer was trained at three or more."""
    groups = rate_groups(report.arms)
    if not groups:
        return []
    cells = pd.concat(groups)
    seeds = cells.groupby(["model", "seq_len", "precision", "variant", "rate"], dropna=False).size()
    caption = (
        f"Mean final held-out loss, nats/token, over up to {plural(int(seeds.max()), 'seed')} at "
        "each peak rate, with 95 % t bands where there are several. Symbols at the upper edge are "
        "cells that did not finish; the dotted line is AdamW's own best rate. Rings: the best "
        "rate, chosen on the cells shown, so the ringed loss is optimistic."
    )
    draw, title = partial(sensitivity, groups, report.baseline), "Final loss over learning rates"
    return [Drawn(SENSITIVITY, "sensitivity", title, caption, draw, ids(cells))]


def sensitivity(groups: list[pd.DataFrame], baseline: str = BASELINE) -> Figure:
    """Mean final loss over the rate (log axis) with 95 % intervals over seeds, a panel each."""
    everything = pd.concat(groups)
    looks = styles(everything)
    failed = [name for name in FAILED if (everything["status"] == name).any()]
    with narrow():
        legends = [group["variant"].nunique() + len(failed) + 3 for group in groups]
        figure, axes = plots(len(groups), legends, height=2.2)
        for axis, group in zip(axes, groups, strict=True):
            axis.set_xscale("log")
            handles = draw_rates(axis, group, looks)
            handles += draw_failed(axis, group, looks)
            handles += draw_best(axis, group, looks, baseline)
            axis.set_title(condition(group, *PANEL), loc="left")
            axis.set(xlabel="Peak learning rate (log scale)", ylabel="Final loss, nats/token")
            plain_log(axis)
            legend_below(axis, handles, [str(handle.get_label()) for handle in handles])
    return figure


def draw_rates(axis: Axes, group: pd.DataFrame, looks: dict[str, Style]) -> list[Line2D]:
    """A line and a band for each arm through the means of its finished cells."""
    handles, means = [], []
    for arm in present(group, looks):
        look, cells = looks[arm], group[(group["variant"] == arm) & (group["status"] == "done")]
        stats = {
            rate: band(at["final_eval_loss"].dropna().to_frame().T).iloc[0]
            for rate, at in cells.groupby("rate")
            if at["final_eval_loss"].notna().any()
        }
        table = pd.DataFrame(stats).T.sort_index()
        (line,) = axis.plot(
            table.index, table["mean"] if len(table) else [], color=look.color,
            marker=look.marker, linestyle=look.line, label=look.label,
        )  # fmt: skip
        handles.append(line)
        if len(table):
            axis.fill_between(table.index, table["lower"], table["upper"], color=look.color,
                              alpha=0.16, linewidth=0)  # fmt: skip
            means.append(table["mean"])
    if means:
        values = np.concatenate(means)
        low, high = values.min(), min(values.max(), values.min() + FAR)
        span = (high - low) or 0.1
        axis.set_ylim(low - 0.08 * span, high + TOP * span)
    return handles


def draw_failed(axis: Axes, group: pd.DataFrame, looks: dict[str, Style]) -> list[Line2D]:
    """Cells that did not finish, and losses beyond the frame, at the upper edge."""
    at, handles = axis.get_xaxis_transform(), {}
    top = axis.get_ylim()[1]
    for index, arm in enumerate(present(group, looks)):
        cells = group[group["variant"] == arm]
        height = 0.97 - 0.05 * (index % 4)
        for status, mark in FAILED.items():
            for rate in cells.loc[cells["status"] == status, "rate"].unique():
                axis.plot(rate, height, mark, color=looks[arm].color, markersize=6,
                          markeredgewidth=1.6, transform=at, clip_on=False)  # fmt: skip
                handles[status] = Line2D([], [], color=WARN, marker=mark, linestyle="none",
                                         label=f"{status} (colour of the optimizer)")  # fmt: skip
        means = cells[cells["status"] == "done"].groupby("rate")["final_eval_loss"].mean()
        for rate in means[means > top].index:
            axis.plot(rate, height, "^", color=looks[arm].color, markersize=5, transform=at)
            handles["beyond"] = Line2D([], [], color=WARN, marker="^", linestyle="none",
                                       label="finished, loss above the frame")  # fmt: skip
    return list(handles.values())


def draw_best(
    axis: Axes, group: pd.DataFrame, looks: dict[str, Style], baseline: str
) -> list[Line2D]:
    """A ring around each arm's best rate, and a line at the baseline's.

    The rate is chosen and shown on the same seeds, so the ringed loss is lower than a fresh run's.
    """
    best = best_rates(group)
    for row in best.to_dict("records"):
        axis.plot(row["rate"], row["final_eval_loss"], "o", color="none", markersize=9,
                  markeredgecolor=looks[row["variant"]].color, markeredgewidth=1.2)  # fmt: skip
    handles = [
        Line2D([], [], color="none", marker="o", markeredgecolor=INK, linestyle="none",
               markersize=8, label="best of these cells, chosen here: optimistic")
    ]  # fmt: skip
    owners = dict(zip(group["variant"], group["optimizer"], strict=True))
    own = best[best["variant"].map(owners) == baseline]
    if not own.empty:
        rate = float(own.sort_values("final_eval_loss")["rate"].iloc[0])
        line = axis.axvline(rate, color=INK, linewidth=0.9, linestyle=(0, (1, 2)),
                            label=f"AdamW's own rate, {rate:.3g}")  # fmt: skip
        handles.append(line)
    return handles
