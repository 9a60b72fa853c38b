"""The largest cell that fits under a memory cap, recomputed from the probes' records."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reports.data.labels import labels
from reports.data.load import BASELINE
from reports.data.report import Report
from reports.data.text import DASH, TIMES, count_text, number_text
from reports.data.values import capped, metric, setting
from reports.tables.registry import Brief, Grid, Raw, Section

CAPACITY = Section("capacity", "Capacity", 30)
KEYS = {
    "micro_batch": "micro-batch, sequences",
    "seq_len": "sequence length, tokens",
    "parameters": "model, parameters",
}
FIXED = ["part", "model", "seq_len", "micro_batch", "precision", "cap"]
COLUMNS = [
    *("key", *FIXED, "variant", "optimizer", "largest", "smallest_oom", "unbounded", "label"),
    *("tokens_per_second", "probes", "others", "cells"),
]


def probes(runs: pd.DataFrame) -> pd.DataFrame:
    """Cells that ran under a cap, with `cap` (GiB), `micro_batch` and a size for each model."""
    cells = runs[capped(runs)].copy()
    cells["cap"] = setting(cells, "task", "memory_cap_gib").astype("float64")
    cells["micro_batch"] = setting(cells, "micro_batch").fillna(1).astype("int64")
    cells["parameters"] = metric(cells, "parameters")
    # A model that never fitted still has a size where another optimizer's probe counted it.
    known = cells.groupby("model")["parameters"].transform("max")
    cells["parameters"] = cells["parameters"].fillna(known)
    return cells


def key_of(cells: pd.DataFrame) -> str | None:
    """What the probes of one part vary within one optimizer; None where nothing varies."""
    for key in KEYS:
        name = "model" if key == "parameters" else key
        others = [column for column in FIXED if column not in (name, "part")]
        groups = cells.groupby(["variant", *others], dropna=False)[name]
        if groups.nunique().max() > 1:
            return key
    return None


def capacity(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a condition, cap and variant: the largest value that trained below the smallest oom.

    `largest` is nan where no probe fitted. `unbounded`: no probe ran out of memory, so the capacity
    is at least `largest`; `smallest_oom` is nan then, and where a model that ran out of memory did
    so before its size was counted. Columns that the search varies hold None.
    """
    found: list[dict[str, Any]] = []
    for _, part in probes(runs).groupby("part", sort=False):
        key = key_of(part) or "micro_batch"
        varied = "model" if key == "parameters" else key
        keys = [name for name in FIXED if name != varied] + ["variant"]
        for values, cells in part.groupby(keys, sort=False, dropna=False):
            row = dict(zip(keys, values, strict=True)) | {varied: None, "key": key}
            row["optimizer"] = cells["optimizer"].iloc[0]
            found.append(row | largest_of(cells, key))
    return pd.DataFrame(found, columns=COLUMNS)


@dataclass(frozen=True)
class Capacity:
    """The answer of one search: the largest value done below the smallest that ran out of memory.

    `limit` is that smallest value (infinite when nothing ran out of memory), `largest` is 0 when
    nothing trained, `best` is the row of the cell at `largest` (None when nothing trained) and
    `tokens_per_second` its rate (nan where not recorded). `cells` are the ids of the two probes
    that decide, `odd` of cells that trained above `limit`, `failed` says which gave no answer.
    """

    largest: float
    limit: float
    best: dict[str, Any] | None
    cells: tuple[str, ...]
    odd: tuple[str, ...]
    failed: tuple[str, ...]

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second at the largest value."""
        return (
            math.nan if self.best is None else float(self.best.get("tokens_per_second", math.nan))
        )


def found_capacity(cells: pd.DataFrame, key: str) -> Capacity:
    """Recompute a search over `key` from its records, in whatever order they ran."""
    rows: list[dict[str, Any]] = [
        {str(name): value for name, value in row.items()}
        for row in cells.sort_values(key).to_dict("records")
    ]
    known = [row for row in rows if not pd.isna(row[key])]
    out = [row for row in known if row["status"] == "oom"]
    limit = min((row[key] for row in out), default=math.inf)
    done = [row for row in known if row["status"] == "done"]
    below = [row for row in done if row[key] < limit]
    best = below[-1] if below else None
    failed = tuple(
        f"{row[key]}: {row['status']} ({row['id']})"
        for row in rows
        if row["status"] not in ("done", "oom")
    )
    behind = [*([best] if best else []), *[row for row in out if row[key] == limit]]
    return Capacity(
        largest=best[key] if best else 0,
        limit=limit,
        best=best,
        cells=tuple(str(row["id"]) for row in behind),
        odd=tuple(str(row["id"]) for row in done if row[key] >= limit),
        failed=failed,
    )


def largest_of(cells: pd.DataFrame, key: str) -> dict[str, Any]:
    """The answer of one search from its probes, as columns of a table."""
    found = found_capacity(cells, key)
    others = cells.loc[~cells["status"].isin(["done", "oom"]), "status"].value_counts()
    return {
        "largest": float(found.largest) if found.best else np.nan,
        "smallest_oom": np.nan if math.isinf(found.limit) else float(found.limit),
        "unbounded": not (cells["status"] == "oom").any(),
        "label": str(found.best["model"]) if found.best else "",
        "tokens_per_second": found.tokens_per_second,
        "probes": len(cells),
        "others": ", ".join(f"{count} {status}" for status, count in others.items()),
        "cells": tuple(cells["id"]),
    }


def value_text(row: dict[Any, Any], name: str) -> str:
    """A capacity's value: a count, or a number of parameters."""
    value = row[name]
    if np.isnan(value):
        return DASH
    return count_text(value) if row["key"] == "parameters" else f"{value:,.0f}"


def answer(row: dict[Any, Any]) -> str:
    """12; at least 64 where nothing ran out of memory; none where nothing fitted."""
    if np.isnan(row["largest"]):
        return "none fits"
    text = value_text(row, "largest")
    if row["key"] == "parameters" and row["label"]:
        text += f" ({row['label']})"
    return f"at least {text}" if row["unbounded"] else text


def csv(report: Report) -> dict[str, pd.DataFrame]:
    """capacity.csv."""
    return {"capacity": capacity(report.runs)}


def grids(report: Report, raw: Raw) -> list[Grid]:
    """What fits under a cap, where a study searched for it."""
    view = capacity_view(raw["capacity"], labels(report.runs), report.baseline)
    title = "Largest that trains under the cap"
    return [Grid(CAPACITY, title, "", view, brief=Brief("Capacity"))]


def capacity_view(
    table: pd.DataFrame, names: dict[str, str], baseline: str = BASELINE
) -> pd.DataFrame:
    """The answers (`table`) in human units with the ratio to the baseline's."""
    rows = []
    for group in capacity_groups(table):
        base = group.loc[group["optimizer"] == baseline, "largest"].max()
        for row in group.to_dict("records"):
            many = row["largest"] / base if base > 0 else np.nan
            rows.append(
                {
                    "optimizer": names[row["variant"]],
                    "cap GiB": f"{row['cap']:g}",
                    "condition": condition_text(row),
                    "largest": f"{KEYS[row['key']].split(',')[0]} {answer(row)}",
                    "smallest out of memory": value_text(row, "smallest_oom"),
                    f"{TIMES} AdamW": DASH if np.isnan(many) else f"{many:.2f}",
                    "tokens/s there": number_text(row["tokens_per_second"], 0),
                    "probes": str(row["probes"]) + (f" ({row['others']})" if row["others"] else ""),
                    "cells": " ".join(row["cells"]),
                }
            )
    return pd.DataFrame(rows)


def capacity_groups(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Conditions: the same search under the same cap."""
    keys = ["key", *FIXED]
    for _, group in table.groupby(keys, sort=False, dropna=False):
        yield group


def condition_text(row: dict[Any, Any]) -> str:
    """What the search held fixed: gpt2_124m, 1024 tokens, fp32."""
    words = [] if pd.isna(row["model"]) else [str(row["model"])]
    if row["seq_len"] is not None and not pd.isna(row["seq_len"]):
        words.append(f"{row['seq_len']:.0f} tokens")
    if row["micro_batch"] is not None and not pd.isna(row["micro_batch"]):
        words.append(f"micro-batch {row['micro_batch']:.0f}")
    return ", ".join([*words, str(row["precision"])])
