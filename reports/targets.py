"""Tokens and seconds until the mean held-out loss reaches a target, from curves."""

from typing import Any

import numpy as np
import pandas as pd

from reports.load import BASELINE
from reports.loss_figures import PANEL, Curves, trained
from reports.style import conditions, styles
from reports.text import DASH, number_text
from reports.values import baseline_variant, setting

SPLIT = ["planned_steps", "eval_split"]
NEVER = "not reached"


def targets(runs: pd.DataFrame, curves: Curves, baseline: str = BASELINE) -> pd.DataFrame:
    """A row a condition, target and variant.

    Targets are the baseline's mean final loss in that condition and every `task.target_loss` that
    its cells set. `tokens` and `seconds` are where the mean curve over finished seeds first
    crosses the target, linear between evaluations, nan where it never does; `reached` of `n`
    seeds cross it alone.
    """
    found: list[dict[str, Any]] = []
    shown = trained(runs, curves)
    shown = shown[shown["status"] == "done"]
    for group in conditions(shown, [*PANEL, *SPLIT]) if not shown.empty else []:
        for origin, target in targets_of(group, baseline):
            for variant, cells in group.groupby("variant", sort=False):
                row = {key: group.iloc[0][key] for key in [*PANEL, *SPLIT]}
                row |= {"variant": variant, "origin": origin, "target": target}
                found.append(row | crossing(curves, cells["id"], target))
    return pd.DataFrame(found)


def targets_of(group: pd.DataFrame, baseline: str) -> list[tuple[str, float]]:
    """The targets of one condition with where they come from, nats/token."""
    found = []
    name = baseline_variant(group, baseline)
    if name is not None:
        final = group.loc[group["variant"] == name, "final_eval_loss"].mean()
        if np.isfinite(final):
            found.append((f"mean final loss of {name}", float(final)))
    given = setting(group, "task", "target_loss").dropna().unique()
    return found + [("task.target_loss", float(value)) for value in sorted(given)]


def crossing(curves: Curves, ids: pd.Series, target: float) -> dict[str, Any]:
    """Where the mean over seeds crosses `target`, and how many seeds do so alone."""
    losses = curves.of(ids)
    mean = losses.mean(axis=1).to_numpy()
    across = {name: curves.of(ids, name).mean(axis=1).to_numpy() for name in
              ("tokens", "train_seconds")}  # fmt: skip
    return {
        "tokens": first_crossing(across["tokens"], mean, target),
        "seconds": first_crossing(across["train_seconds"], mean, target),
        "reached": int((losses.min(axis=0) <= target).sum()),
        "n": losses.shape[1],
        "cells": tuple(ids),
    }


def first_crossing(x: np.ndarray, y: np.ndarray, target: float) -> float:
    """The first `x` at which `y`, linear between its points, is at or below `target`; else nan."""
    tolerance = 1e-12 * max(1.0, abs(target))  # the mean curve ends at the target exactly
    below = np.flatnonzero(y <= target + tolerance)
    if not len(below):
        return float("nan")
    at = int(below[0])
    if at == 0:
        return float(x[0])
    share = (y[at - 1] - target) / (y[at - 1] - y[at])
    return float(x[at - 1] + min(1.0, share) * (x[at] - x[at - 1]))


def targets_view(runs: pd.DataFrame, curves: Curves, baseline: str = BASELINE) -> pd.DataFrame:
    """The targets in human units."""
    looks = styles(runs)
    rows = []
    for row in targets(runs, curves, baseline).to_dict("records"):
        missed = bool(np.isnan(row["tokens"]))
        rows.append(
            {
                "optimizer": looks[row["variant"]].label,
                "model": row["model"],
                "seq": row["seq_len"],
                "precision": row["precision"],
                "target": f"{number_text(row['target'], 4)} ({row['origin']})",
                "million tokens": NEVER if missed else number_text(row["tokens"] / 1e6, 3),
                "seconds": NEVER if missed else number_text(row["seconds"], 1),
                "seeds that reach it": f"{row['reached']} of {row['n']}" if row["n"] else DASH,
            }
        )
    return pd.DataFrame(rows)
