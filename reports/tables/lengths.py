"""The optimizer's share of memory against the length of sequences, from memory cells."""

import pandas as pd

from reports.data.labels import labels
from reports.data.load import BASELINE
from reports.data.report import Report
from reports.data.text import DASH, MINUS, byte_text, missing, number_text
from reports.data.values import MOST_PANELS, conditions, metric
from reports.tables.registry import Brief, Grid, Raw
from reports.tables.runs import MEMORY

# Axes of memory over sizes: their title, the unit of a tick, what a panel holds fixed.
SCALES = {
    "parameters": ("Parameters, millions", 1e6, ["seq_len", "precision"]),
    "seq_len": ("Sequence length, tokens", 1.0, ["model", "precision"]),
}
LENGTHS = (
    "Counted state over the measured peak of the whole cell, and how far the peak lies below "
    "AdamW's in the same condition; medians over finished cells."
)
KEYS = ["model", "precision", "seq_len"]
COLUMNS = [
    *(*KEYS, "variant", "optimizer_state_bytes", "peak_bytes", "state_percent"),
    *("peak_saved_percent", "cells"),
]


def csv(report: Report) -> dict[str, pd.DataFrame]:
    """lengths.csv."""
    return {"lengths": shares(report.plain, report.baseline)}


def grids(report: Report, raw: Raw) -> list[Grid]:
    """The share of the state, where lengths vary."""
    view, brief = shares_view(raw["lengths"], labels(report.plain)), "Memory by sequence length"
    return [Grid(MEMORY, "By sequence length", LENGTHS, view, place=2, brief=Brief(brief))]


def scaling_groups(runs: pd.DataFrame, x: str) -> list[pd.DataFrame]:
    """Conditions of memory cells in which one optimizer was measured at several values of `x`.

    Of many those of the longest sequences (over models) or the largest models (over lengths).
    """
    cells = runs[runs["task"] == "memory"]
    groups = conditions(cells, SCALES[x][2]) if not cells.empty else []
    several = []
    for group in groups:
        done = group[group["peak_bytes"].notna()]
        if not done.empty and done.groupby("variant")[x].nunique().max() > 1:
            several.append(group)
    most = MOST_PANELS // (2 if x == "parameters" else 1)  # over models two quantities are drawn
    if len(several) <= most:
        return several
    # The largest of the other size stand for the rest, as they come closest to a real use.
    other = "seq_len" if x == "parameters" else "parameters"
    ranked = sorted(several, key=lambda group: -float(metric(group, other).fillna(0).max()))
    kept = {id(group) for group in ranked[:most]}
    return [group for group in several if id(group) in kept]


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


def shares_view(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """`shares` in human units, by display label."""
    rows = [
        {
            "model": row["model"],
            "precision": row["precision"],
            "seq": row["seq_len"],
            "optimizer": names[row["variant"]],
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
