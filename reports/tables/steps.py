"""The optimizer-step benchmark as a table that people read."""

from typing import Any

import pandas as pd

from reports.data.load import each
from reports.data.step_bench import PRECISIONS
from reports.data.text import DASH, TIMES, byte_text, missing, ms_text, number_text


def view(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Rows as people read them, under titles with units."""
    ratio = f"{TIMES} {reference} (95 %)"
    shown = [
        {
            "model": row.model,
            "precision": PRECISIONS.get(row.precision, row.precision),
            "optimizer": row.candidate,
            "step, ms": ms_text(row.step_median_seconds),
            "p10, ms": ms_text(row.step_p10_seconds),
            "p90, ms": ms_text(row.step_p90_seconds),
            ratio: ratio_text(row),
            "B/param moved": number_text(row.bytes_moved_per_parameter, 2),
            "% of roofline": number_text(row.roofline_percent, 1),
            "first step, ms": ms_text(row.first_step_seconds),
            "build, s": number_text(row.build_seconds, 2),
            "transient": byte_text(row.step_transient_bytes),
            "first transient": byte_text(row.first_step_transient_bytes),
            "status": row.status,
        }
        for row in each(table)
    ]
    found = pd.DataFrame(shown)
    return found.drop(columns="status") if (table["status"] == "done").all() else found


def ratio_text(row: Any) -> str:
    """The ratio, with its interval where processes give one."""
    if missing(row.ratio_to_reference):
        return DASH
    text = f"{row.ratio_to_reference:.2f}"
    if missing(row.ratio_lower_95) or missing(row.ratio_upper_95) or row.ratio_lower_95 <= 0:
        return text
    if row.ratio_lower_95 == row.ratio_upper_95:
        return text
    return f"{text} ({row.ratio_lower_95:.3g} to {row.ratio_upper_95:.3g})"
