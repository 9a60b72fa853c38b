"""Learning rates: which arms were trained at several, where each is best, how stable they are."""

import json
from typing import Any

import pandas as pd

from reports.data.load import BASELINE, TOKEN_LOSS, variants
from reports.data.text import DASH, digits, missing, number_text
from reports.data.values import metric, rates
from reports.figures.style import conditions

PANEL = ["model", "seq_len", "precision"]
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


def rates_view(groups: list[pd.DataFrame], labels: dict[str, str]) -> pd.DataFrame:
    """Best rate and the loss at each rate, an arm a row; what did not finish by its status."""
    rows = []
    for group in groups:
        best = {row["variant"]: row for row in best_rates(group).to_dict("records")}
        for arm, cells in group.groupby("variant", sort=False):
            entries = []
            for rate, at in cells.groupby("rate"):
                failed = at.loc[at["status"] != "done", "status"].value_counts()
                loss = at["final_eval_loss"].mean()
                words = [] if missing(float(loss)) else [number_text(loss, 4)]
                words += [f"{count} {status}" for status, count in failed.items()]
                entries.append(f"{rate:.3g}: {', '.join(words) or DASH}")
            known = best.get(arm)
            rows.append(
                {
                    "optimizer": labels[str(arm)],
                    "model": group["model"].iloc[0],
                    "seq": group["seq_len"].iloc[0],
                    "precision": group["precision"].iloc[0],
                    "best rate": DASH if known is None else f"{known['rate']:.3g}",
                    "loss there (chosen on it)": DASH
                    if known is None
                    else number_text(known["final_eval_loss"], 4),
                    "rate: mean final loss": "; ".join(entries),
                }
            )
    return pd.DataFrame(rows)


def stability_view(cells: pd.DataFrame, labels: dict[str, str]) -> pd.DataFrame:
    """Spikes, largest update, non-finite gradients and failures by arm and rate (all cells)."""
    rows: list[dict[str, Any]] = []
    keys = [*PANEL, "variant", "rate"]
    for key, group in cells.groupby(keys, sort=False, dropna=False):
        model, seq_len, precision, arm, rate = key
        spikes = spikes_of(group)
        depths = [spike["depth"] for spike in spikes if not missing(spike.get("depth"))]
        recoveries = [spike.get("recovery_steps") for spike in spikes]
        lasting = sum(value is None for value in recoveries)
        longest = max((value for value in recoveries if value is not None), default=None)
        recovery = DASH if longest is None else f"{longest:.0f}"
        status = group["status"]
        total = metric(group, "loss_spikes_total")
        rows.append(
            {
                "optimizer": labels[str(arm)],
                "model": model,
                "seq": seq_len,
                "precision": precision,
                "lr": f"{rate:.3g}",
                "runs": str(len(group)),
                "diverged": str((status == "diverged").sum()),
                "other failures": str((~status.isin(["done", "diverged"])).sum()),
                "loss spikes": DASH if total.isna().all() else number_text(total.sum(), 0),
                "counted from step": first_counted(group),
                "deepest, nats": digits(max(depths)) if depths else DASH,
                "longest recovery, steps": recovery + (f", {lasting} lasting" if lasting else ""),
                "largest update RMS": largest_update(group),
                "non-finite gradients": count_or_dash(group, "nonfinite_gradients_total"),
            }
        )
    return pd.DataFrame(rows)


def spikes_of(group: pd.DataFrame) -> list[dict[str, Any]]:
    """Every recorded spike of these cells; older records hold their number alone."""
    if "loss_spikes" not in group:
        return []
    lists = [value for value in group["loss_spikes"] if isinstance(value, list)]
    return [spike for spikes in lists for spike in spikes if isinstance(spike, dict)]


def first_counted(group: pd.DataFrame) -> str:
    """The first step (from 0) whose loss could count as a spike; a dash in older records."""
    starts = metric(group, "loss_spikes_from_step").dropna().unique()
    return ", ".join(number_text(float(start), 0) for start in sorted(starts)) or DASH


def largest_update(group: pd.DataFrame) -> str:
    """The largest root mean square of an update over the cells, as 4.1e-4."""
    value = metric(group, "largest_update_rms", "largest_logged_update_rms").max()
    return DASH if missing(float(value)) else f"{value:.2g}"


def count_or_dash(group: pd.DataFrame, name: str) -> str:
    """The sum of a count; a dash where no cell has it."""
    values = metric(group, name)
    return DASH if values.isna().all() else number_text(values.sum(), 0)
