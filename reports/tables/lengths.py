"""The optimizer's share of memory against the length of sequences, from memory cells."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.data.load import BASELINE
from reports.data.text import DASH, MINUS, byte_text, missing, number_text
from reports.data.values import metric
from reports.figures.layout import MOST_TICKS, column, narrow, plain_log, shared, ticks_at
from reports.figures.memory import scaling_groups
from reports.figures.style import Style, condition, styles

KEYS = ["model", "precision", "seq_len"]
COLUMNS = [
    *(*KEYS, "variant", "optimizer_state_bytes", "peak_bytes", "state_percent"),
    *("peak_saved_percent", "cells"),
]


def shares(runs: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """One row for each model, precision, length and variant, where lengths vary.

    `state_percent` is the counted state over the measured peak of the whole cell, and
    `peak_saved_percent` how far the peak lies below the baseline's; medians over finished cells.
    """
    groups = scaling_groups(runs, "seq_len")
    if not groups:
        return pd.DataFrame(columns=COLUMNS)
    cells = pd.concat(groups)
    cells = cells[cells["status"] == "done"]
    rows = []
    for key, group in cells.groupby([*KEYS, "variant"], sort=False, dropna=False):
        state = float(metric(group, "optimizer_state_bytes").median())
        peak = float(metric(group, "peak_bytes").median())
        rows.append(
            dict(zip([*KEYS, "variant"], key, strict=True))
            | {"optimizer": group["optimizer"].iloc[0], "cells": " ".join(group["id"])}
            | {"optimizer_state_bytes": state, "peak_bytes": peak}
            | {"state_percent": 100 * state / peak}
        )
    table = pd.DataFrame(rows)
    base = table[table["optimizer"] == baseline].groupby(KEYS)["peak_bytes"].median()
    peaks = pd.Series([base.get(key) for key in zip(*(table[k] for k in KEYS), strict=True)])
    table["peak_saved_percent"] = 100 * (1 - table["peak_bytes"] / peaks.astype("float64"))
    return table[COLUMNS].sort_values(KEYS, kind="stable", ignore_index=True)


def shares_view(table: pd.DataFrame, labels: dict[str, str]) -> pd.DataFrame:
    """`shares` in human units, by display label."""
    rows = [
        {
            "model": row["model"],
            "precision": row["precision"],
            "seq": row["seq_len"],
            "optimizer": labels[row["variant"]],
            "state": byte_text(row["optimizer_state_bytes"]),
            "peak": byte_text(row["peak_bytes"]),
            "share, %": number_text(row["state_percent"], 2),
            "below AdamW's peak, %": percent(row["peak_saved_percent"]),
            "cells": row["cells"],
        }
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows)


def percent(value: float) -> str:
    """One decimal with a true minus; a dash where there is nothing to compare with."""
    return DASH if missing(value) else f"{value:.1f}".replace("-", MINUS)


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
