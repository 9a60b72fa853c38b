"""Whether the counts of an optimizer's bytes agree: storages, closed form, checkpoint, peak.

What an optimizer keeps outside its state is told apart. On a CPU a peak is resident memory, which
holds some ten MB that belong to the process: there the peak is judged by its difference to the
baseline's cell of the same conditions, in which they cancel.
"""

import math
from typing import Any

import pandas as pd

from reports.data.labels import labels
from reports.data.load import BASELINE
from reports.data.report import Report
from reports.data.text import DASH, byte_text, missing
from reports.data.values import capped, metric, setting
from reports.tables.registry import Grid, Raw
from reports.tables.runs import MEMORY

AUDITED_FROM = 500e6  # bytes; smaller increments resident memory does not resolve (measurement.md)
STATE_TOLERANCE, FORM_TOLERANCE = 0.02, 0.005
CHECKPOINT_OVERHEAD = 64 * 1024  # bytes of names and headers in a saved state, besides 2 %
TABLES = 1 << 20  # bytes of constant tables that an optimizer may keep; Gefen's are 80 KiB
CONDITIONS = [
    *("model", "seq_len", "precision", "device", "threads", "micro_batch", "grad_accumulation"),
    *("data_hash", "code_hash"),
]
ITSELF = "peak not judged: the others are judged against it"
NO_PARTNER = "peak not judged: no cell of the baseline in the same conditions"
AUDIT = (
    "The optimizer's state by four methods. Counted: its storages, each once. Closed form: the "
    "registry's formula, within 0.5 %. Checkpoint: the size of the serialised state, up to 2 % and "
    "64 KiB above. Peak increase: the peak of the steady optimizer steps less parameters and "
    "gradients; it holds the state and whatever lives during a step, so it must not be more than "
    "2 % below the count, and what it is above is named. Outside: tensors that the optimizer keeps "
    "elsewhere than in its state, named above 1 MiB. On a CPU a peak is judged by its difference "
    "to the baseline's in the same conditions, where what the process itself takes cancels, and "
    "differences below 500 MB are too small to judge by resident memory."
)
SMALL = "peak not judged: it differs by less than 500 MB from the baseline's"


def audit(runs: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """State by four methods, a row a memory cell, bytes; `flag` says in words what disagrees.

    `peak_increase_bytes` is the peak of the steady optimizer steps less parameters and gradients:
    the state and whatever else lives during a step. It may exceed the state by the step's
    transient, which a peak cannot tell apart; it must not fall short of it. `outside_bytes` are
    tensors that the optimizer keeps outside its state. `baseline_counted_bytes` (with what is kept
    outside) and `baseline_peak_increase_bytes` are medians over the baseline's cells of the same
    conditions. `note` says why a peak was not judged.
    """
    cells = runs[(runs["task"] == "memory") & ~capped(runs)]
    table = pd.DataFrame(
        {
            **{key: cells[key] for key in ("variant", "optimizer", *CONDITIONS[:5])},
            **{key: setting(cells, key) for key in CONDITIONS[5:7]},
            **{key: cells[key] for key in CONDITIONS[7:]},
            "counted_bytes": metric(cells, "optimizer_state_bytes"),
            "closed_form_bytes": metric(cells, "optimizer_state_predicted_bytes"),
            "checkpoint_bytes": metric(cells, "optimizer_checkpoint_bytes"),
            "outside_bytes": metric(cells, "optimizer_tables_bytes"),
            "peak_increase_bytes": metric(cells, "peak_steady_step_bytes")
            - metric(cells, "parameter_bytes")
            - metric(cells, "gradient_bytes"),
            "status": cells["status"],
            "id": cells["id"],
        }
    )
    table = beside_baseline(table, baseline)
    table["is_baseline"] = table["optimizer"] == baseline
    rows = table.to_dict("records")
    table["flag"] = [disagreement(row) for row in rows]
    table["note"] = [unjudged(row) for row in rows]
    return table.drop(columns=["optimizer", "is_baseline", *CONDITIONS[4:]])


def beside_baseline(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """The audit with the baseline's bytes in the same conditions; nan for its own cells."""
    is_base = (table["optimizer"] == baseline) & (table["status"] == "done")
    held = table["counted_bytes"] + table["outside_bytes"].fillna(0.0)
    sizes = pd.DataFrame(
        {
            "baseline_counted_bytes": held,
            "baseline_peak_increase_bytes": table["peak_increase_bytes"],
        }
    )
    keys = [table[key].astype(object).map(str) for key in CONDITIONS]  # also of what is missing
    own = sizes.where(is_base).groupby(keys, dropna=False).transform("median")
    return table.join(own.mask(table["optimizer"] == baseline))


def disagreement(row: dict[Any, Any]) -> str:
    """What disagrees beyond the tolerances, and what may explain it; empty where all agree."""
    counted, found = row["counted_bytes"], []
    if missing(counted):
        return "" if row["status"] == "done" else f"not counted: {row['status']}"
    form, saved, outside = (
        row.get(f"{name}_bytes", math.nan) for name in ("closed_form", "checkpoint", "outside")
    )
    if not missing(form) and abs(counted - form) > FORM_TOLERANCE * form:
        found.append(
            f"counted {apart(counted, form)} the closed form (tolerance 0.5 %): the formula in "
            "the registry or the optimizer's state is not what it says"
        )
    if not missing(outside) and outside > TABLES + STATE_TOLERANCE * counted:
        found.append(f"the optimizer keeps {byte_text(outside)} outside its state")
    if not missing(saved) and saved < counted * (1 - FORM_TOLERANCE):
        found.append(f"the checkpoint is {apart(saved, counted)} the count: it omits state")
    if not missing(saved) and saved > counted * (1 + STATE_TOLERANCE) + CHECKPOINT_OVERHEAD:
        found.append(
            f"the checkpoint is {apart(saved, counted)} the count: it saves what is not counted"
        )
    if not unjudged(row):
        found += peak_flags(row)
    return "; ".join(found)


def unjudged(row: dict[Any, Any]) -> str:
    """Why a peak says nothing about the state of this cell; empty where it does."""
    if missing(row["counted_bytes"]):
        return ""
    if missing(row["peak_increase_bytes"]):
        return "peak not measured"
    if row["device"] != "cpu":
        return ""
    if row.get("is_baseline"):
        return ITSELF
    counted, _, peak = differences(row)
    if missing(counted) or missing(peak):
        return NO_PARTNER
    return SMALL if max(abs(counted), abs(peak)) < AUDITED_FROM else ""


def differences(row: dict[Any, Any]) -> tuple[float, float, float]:
    """Counted (with what lies outside), its size to measure by, and peak; bytes.

    On a CPU those over the baseline's, which may be negative; elsewhere they stand for themselves.
    """
    outside = row.get("outside_bytes", math.nan)
    counted = row["counted_bytes"] + (0.0 if missing(outside) else outside)
    peak = row["peak_increase_bytes"]
    if row["device"] != "cpu":
        return counted, counted, peak
    counted -= row.get("baseline_counted_bytes", math.nan)
    peak -= row.get("baseline_peak_increase_bytes", math.nan)
    return counted, max(abs(counted), AUDITED_FROM), peak


def peak_flags(row: dict[Any, Any]) -> list[str]:
    """What the peak says against the count."""
    counted, size, peak = differences(row)
    over = "" if row["device"] != "cpu" else ", both over the baseline's"
    if peak < counted - STATE_TOLERANCE * size:
        return [
            f"the peak is {byte_text(counted - peak)} below the count{over}: part of the state was "
            "not resident together with parameters and gradients"
        ]
    if peak > counted + STATE_TOLERANCE * size:
        return [
            f"the peak grew by {byte_text(peak - counted)} more than the count{over}: the step's "
            "transient, what the process keeps besides, or state that is not counted"
        ]
    return []


def apart(value: float, reference: float) -> str:
    """3.2 % above, 1.5 % below."""
    share = 100 * (value - reference) / reference if reference else math.inf
    return f"{abs(share):.1f} % {'above' if share > 0 else 'below'}"


def csv(report: Report) -> dict[str, pd.DataFrame]:
    """byte_audit.csv."""
    return {"byte_audit": audit(report.plain, report.baseline)}


def grids(report: Report, raw: Raw) -> list[Grid]:
    """The audit, where memory was measured."""
    view = audit_view(raw["byte_audit"], labels(report.plain))
    return [Grid(MEMORY, "Byte audit", AUDIT, view, place=3)]


def audit_view(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """The audit (`table`) in human units; no rows without memory cells."""
    rows = [
        {
            "optimizer": names[row["variant"]],
            "model": row["model"],
            "seq": row["seq_len"],
            "precision": row["precision"],
            "counted": byte_text(row["counted_bytes"]),
            "outside": byte_text(row["outside_bytes"]),
            "closed form": byte_text(row["closed_form_bytes"]),
            "checkpoint": byte_text(row["checkpoint_bytes"]),
            "peak increase": byte_text(row["peak_increase_bytes"]),
            "flag": outcome(row),
            "id": row["id"],
        }
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows)


def outcome(row: dict[Any, Any]) -> str:
    """What disagrees; that all agree only where all were judged."""
    if row["flag"]:
        return "; ".join(filter(None, [row["flag"], row["note"]]))
    if missing(row["counted_bytes"]):
        return DASH
    return f"state agrees; {row['note']}" if row["note"] else "agree"
