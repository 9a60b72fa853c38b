"""Tokens and seconds until the held-out loss of each seed reaches a target, from its curve."""

import math
from typing import Any

import numpy as np
import pandas as pd

from harness.cells.crossing import first_crossing
from reports.data.curves import Curves, trained
from reports.data.identity import TOKEN_LOSS
from reports.data.labels import labels
from reports.data.load import BASELINE
from reports.data.rates import SPLIT
from reports.data.report import Report
from reports.data.text import DASH, digits, number_text, plural
from reports.data.values import PANEL, baseline_variant, conditions, setting
from reports.stats.intervals import ratio_interval
from reports.tables.registry import Grid, Raw
from reports.tables.runs import LOSS

TARGETS = (
    "Where the curve of each finished seed first crosses the target, linear between evaluations; "
    "means over seeds where all cross, and the ratio of tokens paired by seed, where all pairs do. "
    "AdamW's own last evaluation is the target of the same seed; a crossing inside a schedule that "
    "was planned for more steps is no substitute for a shorter one."
)
SEEDS = ["model_seed", "data_seed"]
NEVER = "not reached"
LEAST = 5  # pairs for an interval
Seeds = tuple[int, int]
Crossings = dict[Seeds, tuple[float, float]]  # tokens and seconds by seeds, nan where never


def csv(report: Report) -> dict[str, pd.DataFrame]:
    """targets.csv."""
    return {"targets": targets(report.plain, report.curves, report.baseline)}


def grids(report: Report, raw: Raw) -> list[Grid]:
    """Tokens and seconds to each target."""
    view = targets_view(raw["targets"], labels(report.plain))
    return [Grid(LOSS, "Tokens and seconds to target", TARGETS, view, place=2)]


def targets(runs: pd.DataFrame, curves: Curves, baseline: str = BASELINE) -> pd.DataFrame:
    """A row a condition, target and variant.

    Targets are every `task.target_loss` that the cells set, and for each seed the last evaluation
    of the baseline with that seed (`target` is then their mean). A crossing is
    `harness.cells.crossing.first_crossing` of one finished cell's curve, as in its record. `tokens`
    and `seconds` are means over the n seeds with a target, nan unless all of them cross it (the
    `reached` ones alone would be a selection). `ratio`, `lower` and `upper` compare tokens with the
    baseline's, paired by seed, where both cross at every seed that they share: geometric mean and
    95 % t interval on logs.
    """
    found: list[dict[str, Any]] = []
    shown = trained(runs, curves)
    shown = shown[shown["task"].isin(TOKEN_LOSS) & shown["status"].eq("done")]
    shown = shown.drop_duplicates(["variant", *SEEDS, *PANEL, *SPLIT])
    for group in conditions(shown, [*PANEL, *SPLIT]) if not shown.empty else []:
        name = baseline_variant(group, baseline)
        for origin, goals in targets_of(group, curves, name):
            crossed = {
                variant: crossings(cells, curves, goals)
                for variant, cells in group.groupby("variant", sort=False)
            }
            base = {} if name is None else crossed.get(name, {})
            for variant, own in crossed.items():
                row = {key: group.iloc[0][key] for key in [*PANEL, *SPLIT]}
                row |= {"variant": variant, "origin": origin}
                row |= {"target": float(np.mean(list(goals.values())))} | summary(own)
                row |= compared(own, base if variant != name else {})
                cells = group.loc[group["variant"] == variant, "id"]
                found.append(row | {"cells": tuple(cells)})
    return pd.DataFrame(found)


def targets_of(
    group: pd.DataFrame, curves: Curves, name: str | None
) -> list[tuple[str, dict[Seeds, float]]]:
    """The targets of one condition, nats/token by seeds, with where they come from."""
    found = []
    if name is not None:
        own = {
            seeds: float(curves.one(cell).iloc[-1])
            for seeds, cell in by_seeds(group[group["variant"] == name]).items()
        }
        found.append((f"last evaluation of {name}, same seed", own))
    given = setting(group, "task", "target_loss").dropna().unique()
    everyone = by_seeds(group)
    return found + [
        ("task.target_loss", dict.fromkeys(everyone, float(value))) for value in sorted(given)
    ]


def by_seeds(cells: pd.DataFrame) -> dict[Seeds, str]:
    """The id of the cell of each pair of seeds."""
    seeds = zip(cells["model_seed"], cells["data_seed"], strict=True)
    return dict(zip(seeds, cells["id"], strict=True))


def crossings(cells: pd.DataFrame, curves: Curves, goals: dict[Seeds, float]) -> Crossings:
    """Tokens and seconds until each cell, whose seeds have a target, crosses it."""
    found = {}
    for seeds, cell in by_seeds(cells).items():
        if seeds in goals:
            losses = curves.one(cell)
            places = [
                first_crossing(
                    curves.one(cell, axis).loc[losses.index].tolist(),
                    losses.tolist(),
                    goals[seeds],
                )
                for axis in ("tokens", "train_seconds")
            ]
            tokens, seconds = (math.nan if place is None else place for place in places)
            found[seeds] = (tokens, seconds)
    return found


def summary(own: Crossings) -> dict[str, Any]:
    """Means over seeds, and how many of them cross."""
    table = np.array(list(own.values())).reshape(-1, 2)
    tokens, seconds = table.mean(axis=0) if len(table) else (math.nan, math.nan)
    return {
        "tokens": float(tokens),
        "seconds": float(seconds),
        "reached": int(np.isfinite(table[:, 0]).sum()),
        "n": len(table),
    }


def compared(own: Crossings, base: Crossings) -> dict[str, Any]:
    """Tokens over the baseline's, paired by seed; without an interval below five pairs.

    Of the `shared` seeds both must cross at all of them: those `pairs` that do are the seeds at
    which this run was good, and against the baseline's own last loss nearly always earlier.
    """
    shared = [(own[seeds][0], base[seeds][0]) for seeds in own if seeds in base]
    pairs = [pair for pair in shared if min(pair) > 0]  # nan is not
    counts = {"pairs": len(pairs), "shared": len(shared)}
    nothing = {"ratio": math.nan, "lower": math.nan, "upper": math.nan, **counts}
    if not pairs or len(pairs) < len(shared):
        return nothing
    stat = ratio_interval([mine for mine, _ in pairs], [other for _, other in pairs])
    bounds = {"lower": stat.lower, "upper": stat.upper} if stat.n >= LEAST else {}
    return nothing | {"ratio": stat.estimate} | bounds


def targets_view(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """The targets (`table`) in human units."""
    rows = []
    for row in table.to_dict("records"):
        missed = bool(np.isnan(row["tokens"]))
        rows.append(
            {
                "optimizer": names[row["variant"]],
                "model": row["model"],
                "seq": row["seq_len"],
                "precision": row["precision"],
                "target": f"{number_text(row['target'], 4)} ({row['origin']})",
                "million tokens": NEVER if missed else number_text(row["tokens"] / 1e6, 3),
                "seconds": NEVER if missed else number_text(row["seconds"], 1),
                "tokens over AdamW's": ratio_text(row),
                "seeds that reach it": f"{row['reached']} of {row['n']}" if row["n"] else DASH,
            }
        )
    return pd.DataFrame(rows)


def ratio_text(row: dict[Any, Any]) -> str:
    """0.92 (0.85 to 0.99), 5 pairs; reached 3 of 5, where not every pair has both crossings."""
    if np.isnan(row["ratio"]):
        return f"reached {row['pairs']} of {row['shared']}" if row["shared"] else DASH
    known = not np.isnan(row["lower"])
    bounds = f" ({digits(row['lower'])} to {digits(row['upper'])})" if known else ""
    return f"{digits(row['ratio'])}{bounds}, {plural(row['pairs'], 'pair')}"
