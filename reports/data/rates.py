"""Where each optimizer is best in a sweep over learning rates, and which were swept at all."""

import json
from typing import Any

import pandas as pd

from reports.data.identity import TOKEN_LOSS, variants
from reports.data.load import BASELINE
from reports.data.values import PANEL, conditions, rates

SPLIT = ["planned_steps", "eval_split"]
RATE_KEYS = ("lr", "lr_factor")


def arms(runs: pd.DataFrame) -> pd.DataFrame:
    """Training cells with `rate`, and `variant` without its rate: one arm keeps one style."""
    cells = runs[runs["task"].isin(TOKEN_LOSS)].copy()
    stripped = [
        json.dumps({key: value for key, value in json.loads(text).items() if key not in RATE_KEYS})
        for text in cells["settings"]
    ]
    cells["settings"] = stripped
    cells["rate"] = rates(cells)
    if not cells.empty:
        cells["variant"] = variants(cells)
    return cells


def rate_groups(cells: pd.DataFrame) -> list[pd.DataFrame]:
    """Conditions in which an arm was trained at three rates or more, failed cells included."""
    if cells.empty:
        return []
    groups = conditions(cells, [*PANEL, *SPLIT])
    return [group for group in groups if group.groupby("variant")["rate"].nunique().max() >= 3]


def best_rates(group: pd.DataFrame) -> pd.DataFrame:
    """For each arm of one condition its rate of lowest mean final loss: variant, rate, loss."""
    done = group[(group["status"] == "done") & group["final_eval_loss"].notna()]
    means = done.groupby(["variant", "rate"], as_index=False, sort=False)["final_eval_loss"].mean()
    return means.loc[means.groupby("variant", sort=False)["final_eval_loss"].idxmin()]


def at_best_rates(runs: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """The runs without the rates of a sweep that are neither their arm's best nor the baseline's.

    Elsewhere than in a sweep nothing is left out. Variants are named anew over what remains.
    """
    dropped: list[Any] = []
    for group in rate_groups(arms(runs)):
        best = best_rates(group).set_index("variant")["rate"]
        owners = dict(zip(group["variant"], group["optimizer"], strict=True))
        own = {rate for arm, rate in best.items() if owners[arm] == baseline}
        kept = [
            rate in own or rate == best.get(arm, rate)
            for arm, rate in zip(group["variant"], group["rate"], strict=True)
        ]
        dropped += list(group.index[[not keep for keep in kept]])
    rest = runs.drop(index=dropped)
    return rest.assign(variant=variants(rest)) if dropped else rest
