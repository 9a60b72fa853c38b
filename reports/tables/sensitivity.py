"""Learning rates in tables: the loss at each of them, and how stable training was."""

from typing import Any

import pandas as pd

from reports.data.labels import labels
from reports.data.rates import best_rates, rate_groups
from reports.data.report import Report
from reports.data.text import DASH, digits, missing, number_text
from reports.data.values import PANEL, metric
from reports.tables.registry import Brief, Grid, Raw, Section

SENSITIVITY = Section("sensitivity", "Sensitivity", 80)
STABILITY = Section("stability", "Stability", 90)
RATES = "Mean final held-out loss at each rate, nats/token; cells that did not finish by status."
STABLE = (
    "All cells, also those that did not finish. Update RMS: the root mean square of the change of "
    "all parameters in one step, largest of the steps in which it was measured."
)


def grids(report: Report, raw: Raw) -> list[Grid]:
    """The loss at each rate, where arms were trained at several; spikes and failures of all."""
    cells = report.arms
    names, groups, brief = labels(cells), rate_groups(cells), Brief("Loss by learning rate")
    stability, title = stability_view(cells, names), "By optimizer and learning rate"
    return [
        Grid(SENSITIVITY, "By learning rate", RATES, rates_view(groups, names), brief=brief),
        Grid(STABILITY, title, STABLE, stability),
    ]


def rates_view(groups: list[pd.DataFrame], names: dict[str, str]) -> pd.DataFrame:
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
                    "optimizer": names[str(arm)],
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


def stability_view(cells: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
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
                "optimizer": names[str(arm)],
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
