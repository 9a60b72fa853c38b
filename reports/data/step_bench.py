"""The optimizer-step benchmark as tables: step_bench.json -> one row for each candidate."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.cells import store
from reports.data.load import ReportError

FILE = "step_bench.json"
VERSION = 1
KEYS = ["model", "precision"]
PRECISIONS = {"bf16_pure": "bf16"}
NUMBERS = (
    *("step_median_seconds", "step_p10_seconds", "step_p90_seconds", "first_step_seconds"),
    *("build_seconds", "ratio_to_reference", "roofline_percent", "bytes_moved"),
    *("bytes_moved_per_parameter", "optimizer_state_bytes"),
    *("step_transient_bytes", "first_step_transient_bytes"),
)


def read(path: Path) -> dict[str, Any]:
    """The document in a folder or a file. Raises ReportError for one that is not a benchmark's."""
    path = path / FILE if path.is_dir() else path
    try:
        document = store.read_json(path)
    except store.UserError as error:
        raise ReportError(str(error)) from error
    if not isinstance(document, dict) or document.get("kind") != "step_bench":
        raise ReportError(f"{path} is not the output of gefen-step.")
    if document.get("schema_version") != VERSION:
        found = document.get("schema_version")
        raise ReportError(
            f"{path} has schema_version {found!r}; this version reads {VERSION} only."
        )
    return document


def frame(document: dict[str, Any]) -> pd.DataFrame:
    """One row for each candidate of each condition; times in seconds, memory in bytes.

    `status` is "done" or the reason for which a candidate was not timed; numbers are then missing.
    """
    optimizers, rows = document["optimizers"], list[dict[str, Any]]()
    for facts in document["conditions"]:
        shared = {
            key: facts.get(key)
            for key in (*KEYS, "parameters", "whole_parameters", "layers", "whole_layers",
                        "processes", "copy_bytes_per_second")
        }  # fmt: skip
        for name, entry in facts["candidates"].items():
            low, high = entry.get("ratio_interval_95") or (None, None)
            interval = {"ratio_lower_95": low, "ratio_upper_95": high}
            numbers = {key: entry.get(key) for key in NUMBERS}
            head = {"candidate": name, "optimizer": optimizers[name], "status": "done"}
            rows.append({**shared, **head, **numbers, **interval})
        for name, reason in facts["failed_candidates"].items():
            if name not in facts["candidates"]:
                head = {"candidate": name, "optimizer": optimizers[name], "status": reason}
                rows.append({**shared, **head})
    if not rows:
        raise ReportError("The benchmark has no finished process, so there is nothing to draw.")
    table = pd.DataFrame(rows)
    for key in (*NUMBERS, "ratio_lower_95", "ratio_upper_95", "copy_bytes_per_second"):
        table[key] = pd.to_numeric(table.get(key, pd.Series(np.nan, table.index)))
    table["reference"] = document["reference"]
    table["floor_seconds"] = table["bytes_moved"] / table["copy_bytes_per_second"]
    return table
