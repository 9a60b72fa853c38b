"""Image classifiers judged over repeated folds: paired differences and what they could detect."""

import math
from typing import Any

import pandas as pd

from reports.data.labels import labels
from reports.data.load import BASELINE
from reports.data.report import Report
from reports.data.text import DASH, MINUS, missing, number_text
from reports.data.values import metric, setting
from reports.stats.intervals import Interval, corrected_interval, finite
from reports.stats.power import detectable
from reports.tables.registry import Brief, Grid, Raw, Section

CLASSIFICATION = Section("classification", "Classification", 70)
FOLDS = (
    "Means over finished cells of all folds and repetitions, on images that were not trained on. "
    "Differences are paired by seed and fold, with 95 % t intervals whose variance is corrected "
    "for overlapping training sets (Nadeau and Bengio 2003). Detectable: the true difference that "
    "this test finds in 80 of 100 such studies at the observed spread; a smaller one may be there. "
    "A dash: all differences are equal, so no spread was observed."
)
KEYS = ["model", "precision", "planned_steps", "eval_split", "data_hash", "code_hash", "device"]
PAIR = ["model_seed", "data_seed", "fold"]
POWER = 0.8
METRICS = {"accuracy": "final_eval_accuracy", "loss": "final_eval_loss"}


def csv(report: Report) -> dict[str, pd.DataFrame]:
    """folds.csv."""
    return {"folds": folds(report.plain, report.baseline)}


def grids(report: Report, raw: Raw) -> list[Grid]:
    """Accuracy and loss over folds."""
    view = folds_view(raw["folds"], labels(report.plain))
    brief = Brief("Classification over folds")
    return [Grid(CLASSIFICATION, "Over folds", FOLDS, view, brief=brief)]


def folded(runs: pd.DataFrame) -> pd.DataFrame:
    """The cells that classified a fold, with its number as `fold`."""
    cells = runs.assign(fold=setting(runs, "data", "fold"), folds=setting(runs, "data", "folds"))
    return cells[(cells["task"] == "classify") & cells["folds"].notna()]


def folds(runs: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """One row for each condition and variant; differences are this minus the baseline.

    `n` pairs have equal seeds and fold, and both cells done; `lost` counts the other cells. For
    accuracy (a share of 1) and loss (nats/image): the mean, the mean paired difference with the
    95 % interval of `corrected_interval`, and the smallest true difference that this test finds in
    80 % of such studies (`detectable`) at the observed spread.
    """
    rows = []
    for key, group in folded(runs).groupby(KEYS, dropna=False, sort=False):
        base = group[(group["optimizer"] == baseline) & (group["status"] == "done")]
        for variant, mine in group.groupby("variant", sort=False):
            done = mine[mine["status"] == "done"]
            row: dict[str, Any] = dict(zip(KEYS, key, strict=True))
            row |= {"variant": variant, "optimizer": mine["optimizer"].iloc[0]}
            row |= {"lr": mine["lr"].iloc[0], "n": len(done), "lost": len(mine) - len(done)}
            row |= {name: metric(done, column).mean() for name, column in METRICS.items()}
            if row["optimizer"] != baseline:
                row |= compared(done, base)
            rows.append(row | {"cells": " ".join(mine["id"])})
    return pd.DataFrame(rows)


def compared(mine: pd.DataFrame, base: pd.DataFrame) -> dict[str, Any]:
    """Differences of the pairs in which both cells finished; nan below two pairs."""
    sides = mine.merge(base, on=PAIR, suffixes=("", "_base"))
    found: dict[str, Any] = {"n": len(sides)}
    if base.duplicated(PAIR).any() or mine.duplicated(PAIR).any() or len(sides) < 2:
        return found
    share = float((sides["final_eval_images"] / sides["train_images"]).mean())
    for name, column in METRICS.items():
        differences = metric(sides, column) - metric(sides, f"{column}_base")
        values = finite(list(differences), 2).tolist()
        interval = corrected_interval(values, share)
        found[f"{name}_difference"] = interval.estimate
        found |= {f"{name}_lower": interval.lower, f"{name}_upper": interval.upper}
        found[f"{name}_detectable"] = least(interval, share)
    return found | {"test_over_train_images": share}


def least(interval: Interval, share: float) -> float:
    """The difference that the interval's own test finds with the wanted power; nan at no spread."""
    if not interval.sd > 0:
        return math.nan  # equal differences say nothing of how far others would lie apart
    return detectable(interval.sd, interval.n, share, 1 - interval.confidence, POWER)


def folds_view(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """`folds` in human units: accuracies and their differences in percent and points."""
    rows = [
        {
            "optimizer": names[row["variant"]],
            "model": row["model"],
            "lr": f"{row['lr']:g}",
            "cells or pairs": row["n"],
            "lost": row["lost"],
            "accuracy, %": number_text(100 * row["accuracy"], 2),
            "minus AdamW, points": between(row, "accuracy", 100, 2),
            "detectable, points": number_text(100 * row.get("accuracy_detectable", math.nan), 2),
            "loss, nats/image": number_text(row["loss"], 4),
            "minus AdamW, nats": between(row, "loss", 1, 4),
            "detectable, nats": number_text(row.get("loss_detectable", math.nan), 4),
            "cells": row["cells"],
        }
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows)


def between(row: dict[Any, Any], name: str, scale: float, decimals: int) -> str:
    """A difference with its interval: +0.12 (−0.30 to 0.54); a dash where there is none."""
    value = row.get(f"{name}_difference", math.nan)
    if missing(value):
        return DASH
    low, high = (scale * row[f"{name}_{side}"] for side in ("lower", "upper"))
    text = f"{scale * value:+.{decimals}f} ({low:.{decimals}f} to {high:.{decimals}f})"
    return text.replace("-", MINUS)
