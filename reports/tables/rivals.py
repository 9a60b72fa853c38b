"""Every optimizer of one task side by side: what it stores, where it ends, what it takes."""

import pandas as pd

from reports.data.labels import labels
from reports.data.load import each
from reports.data.pairing import counted
from reports.data.report import Report
from reports.data.text import DASH, byte_text, missing, ms_text, number_text
from reports.data.tuned_rates import tuned_edge
from reports.data.values import PANEL, conditions, metric, rates
from reports.tables.registry import Brief, Grid, Raw, Section

RIVALS = (
    "One task, test split, best mean loss first. State with the tables beside it; peak, optimizer "
    "step and tokens a second are medians over finished cells. Edge: the rate won at the edge of "
    "the grid it was tuned on, so a better one may lie beyond; a dash: no file in configs/tuned "
    "has it. Not dominated: no other has both fewer state bytes and a lower mean loss."
)
SIDE_BY_SIDE = Section("rivals", "Side by side", 10)
LEAST = 6  # optimizers in one condition, below which the other tables say it better
ALIKE = [*PANEL, "planned_steps", "data_hash", "code_hash", "device"]


def csv(report: Report) -> dict[str, pd.DataFrame]:
    """rivals.csv."""
    return {"rivals": rivals(report.shown)}


def grids(report: Report, raw: Raw) -> list[Grid]:
    """All optimizers of one task, where many trained alike."""
    view = rivals_view(raw["rivals"], labels(report.shown))
    return [Grid(SIDE_BY_SIDE, "All optimizers", RIVALS, view, brief=Brief("Side by side"))]


def rival_groups(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """Training cells on the test split by condition, where enough optimizers trained alike."""
    cells = runs[(runs["task"] == "pretrain") & (runs["eval_split"] == "test")]
    if cells.empty:
        return []
    groups = conditions(cells, ALIKE)
    return [group for group in groups if group["optimizer"].nunique() >= LEAST]


def rivals(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a condition and variant, in raw units; nan where no cell finished.

    Columns: the condition, variant, optimizer, n, failed (their statuses),
    state_bytes_per_parameter (with tables beside the state), final_eval_loss (mean), lowest_loss,
    highest_loss, peak_bytes, step_median_seconds (the optimizer's step), tokens_per_second (medians
    over finished cells), rate, edge (whether that rate lies at the edge of the grid it was tuned
    on; None where no tuned file has it), frontier (no other has both fewer state bytes and a lower
    loss), cells.
    """
    tables = [frontier(pd.DataFrame(rows_of(group))) for group in rival_groups(runs)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def rows_of(group: pd.DataFrame) -> list[dict[str, object]]:
    """A row for each variant of one condition."""
    held = counted(group)
    state = held["held_bytes"] / held["parameters"]
    group = group.assign(state=state.reindex(group.index), rate=rates(group))
    rows = []
    for variant, cells in group.groupby("variant", sort=False):
        done = cells[cells["status"] == "done"]
        losses = done["final_eval_loss"].dropna()
        row: dict[str, object] = {key: cells[key].iloc[0] for key in ALIKE}
        row |= {"variant": variant, "optimizer": cells["optimizer"].iloc[0], "n": len(losses)}
        row |= {"failed": ", ".join(cells.loc[cells["status"] != "done", "status"])}
        row |= {
            "state_bytes_per_parameter": cells["state"].median(),
            "final_eval_loss": losses.mean(),
            "lowest_loss": losses.min(),
            "highest_loss": losses.max(),
        }
        for name in ("peak_bytes", "step_median_seconds", "tokens_per_second"):
            row[name] = metric(done, name).median()
        rate = float(cells["rate"].iloc[0])
        row |= {"rate": rate, "edge": tuned_edge(cells.iloc[0].to_dict(), rate)}
        rows.append(row | {"cells": tuple(cells["id"])})
    return rows


def frontier(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the column `frontier`, by state bytes per parameter in rising order."""
    table = table.sort_values(
        ["state_bytes_per_parameter", "final_eval_loss"], ignore_index=True, na_position="last"
    )
    known = table["state_bytes_per_parameter"].notna() & table["final_eval_loss"].notna()
    # A row without a loss leaves the lowest so far as it is: infinite would let the next one pass.
    losses = table["final_eval_loss"].where(known, float("inf"))
    before = losses.cummin().shift(fill_value=float("inf"))
    return table.assign(frontier=known & (losses < before))


def rivals_view(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """The rows in human units, best loss first."""
    if table.empty:
        return table
    several = table[PANEL].drop_duplicates().shape[0] > 1
    rows = []
    for row in each(table.sort_values([*PANEL, "final_eval_loss"], na_position="last")):
        line = {"optimizer": names[row.variant]}
        if several:
            line |= {"model": row.model, "seq": row.seq_len, "precision": row.precision}
        line |= {
            "state, B/param": number_text(row.state_bytes_per_parameter, 3),
            "final loss": number_text(row.final_eval_loss, 4),
            "lowest to highest": spread(row),
            "n": f"{row.n}{f' + {row.failed}' if row.failed else ''}",
            "peak": byte_text(row.peak_bytes),
            "optimizer step ms": ms_text(row.step_median_seconds),
            "tokens/s": number_text(row.tokens_per_second, 0),
            "rate": f"{row.rate:.3g}",
            "edge of its grid": DASH if row.edge is None else "yes" if row.edge else "no",
            "not dominated": "yes" if row.frontier else "",
            "cells": " ".join(row.cells),
        }
        rows.append(line)
    return pd.DataFrame(rows)


def spread(row: object) -> str:
    """The lowest and the highest loss over seeds; a dash for one seed."""
    low, high = getattr(row, "lowest_loss", None), getattr(row, "highest_loss", None)
    if missing(low) or low == high:
        return DASH
    return f"{number_text(low, 4)} to {number_text(high, 4)}"
