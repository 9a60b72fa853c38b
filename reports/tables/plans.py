"""What gefen-plan predicted beside what was measured, where `gefen-plan --check --save` left it."""

import json
from pathlib import Path

import pandas as pd

from harness.cells import store
from reports.data.labels import labels
from reports.data.load import ReportError
from reports.data.report import Report
from reports.data.text import DASH, MINUS, byte_text
from reports.tables.registry import Grid, Raw
from reports.tables.runs import MEMORY

PLANS = (
    "What gefen-plan predicts from a cell's configuration alone, and what was measured; errors are "
    "(predicted - measured) / measured. Ok: state within 0.5 %, peak within 10 % on CUDA or 15 % "
    "on a CPU. Small: less than 500 MB on a CPU, not judged."
)
COLUMNS = [
    *("id", "model", "precision", "device", "tokens"),
    *("state_bytes", "predicted_state_bytes", "state_error"),
    *("peak_bytes", "predicted_peak_bytes", "peak_error", "verdict"),
]


def csv(report: Report) -> dict[str, pd.DataFrame]:
    """plans.csv."""
    return {"plans": plans(report.data.folder, report.runs)}


def grids(report: Report, raw: Raw) -> list[Grid]:
    """Plans beside measurements, also of probes under a cap."""
    view = plans_view(raw["plans"], labels(report.runs))
    return [Grid(MEMORY, "Plan against measurement", PLANS, view, place=4)]


def plans(folder: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each cell of `runs` that was planned, with its variant; empty without the file.

    Bytes of rank 0; errors are (predicted - measured) / measured, missing where nothing is
    predicted. Raises ReportError for a file that is not `gefen-plan --check`'s.
    """
    path = folder / store.PLAN_FILE
    if not path.is_file():
        return pd.DataFrame(columns=["variant", *COLUMNS])
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        table = pd.DataFrame(cells, columns=COLUMNS)
    except (ValueError, KeyError, TypeError) as error:
        raise ReportError(
            f"{path} is no file of gefen-plan --check: {error}; run it again."
        ) from error
    chosen = runs.set_index("id")["variant"]
    table = table[table["id"].isin(chosen.index)]
    table.insert(0, "variant", table["id"].map(chosen))
    return table.sort_values(["model", "precision", "tokens"], kind="stable", ignore_index=True)


def plans_view(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """`plans` in human units, by display label."""
    rows = [
        {
            "optimizer": names[row["variant"]],
            "model": row["model"],
            "precision": row["precision"],
            "tokens": row["tokens"],
            "state": byte_text(row["state_bytes"]),
            "state error": percent(row["state_error"]),
            "peak": byte_text(row["peak_bytes"]),
            "planned peak": byte_text(row["predicted_peak_bytes"]),
            "peak error": percent(row["peak_error"]),
            "within": row["verdict"],
            "cells": row["id"],
        }
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows)


def percent(share: float | None) -> str:
    """A share in percent with its sign; a dash where there is none."""
    return DASH if pd.isna(share) else f"{share:+.1%}".replace("-", MINUS)
