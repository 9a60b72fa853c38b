"""Which conditions and rows a figure shows: shared by figures with one row an optimizer."""

import pandas as pd

from reports.data.text import TIMES
from reports.data.values import MOST_PANELS, PANEL, conditions, metric
from reports.figures.style import Style

STATE_PANEL = ["model", "precision"]
Rows = list[tuple[str, pd.DataFrame]]


def measured(runs: pd.DataFrame, column_name: str) -> pd.DataFrame:
    """Memory cells where a study has them (else all), in conditions that have any such value."""
    memory = runs[runs["task"] == "memory"]
    chosen = memory if memory[column_name].notna().any() else runs
    return chosen[chosen.groupby(STATE_PANEL)[column_name].transform("count") > 0]


def shown_conditions(cells: pd.DataFrame) -> list[pd.DataFrame]:
    """The conditions to draw: all, or where they are many the longest sequence of each model.

    Of these at most `MOST_PANELS`, from the largest models; tables hold the rest.
    """
    groups = conditions(cells, PANEL)
    if len(groups) <= MOST_PANELS:
        return groups
    longest = cells.groupby(STATE_PANEL, dropna=False)["seq_len"].transform("max")
    groups = conditions(cells[cells["seq_len"] == longest], PANEL)
    sizes = [metric(group, "parameters").fillna(0.0).max() for group in groups]
    kept = sorted(range(len(groups)), key=lambda at: (-sizes[at], at))[:MOST_PANELS]
    return [groups[at] for at in sorted(kept)]


def rows_of(group: pd.DataFrame, looks: dict[str, Style]) -> Rows:
    """Variants of one condition with their cells, last first: the first stands on top."""
    names = [variant for variant in looks if (group["variant"] == variant).any()]
    return [(name, group[group["variant"] == name]) for name in reversed(names)]


def status_text(cells: pd.DataFrame) -> str:
    """The statuses of cells that did not finish, with a cross: "× out of memory"; else empty."""
    words = {"oom": "out of memory"}
    found = cells.loc[cells["status"] != "done", "status"]
    text = ", ".join(dict.fromkeys(words.get(status, status) for status in found))
    return f"{TIMES} {text}" if text else ""


def counts(groups: list[pd.DataFrame]) -> list[int]:
    """Rows of each panel."""
    return [int(group["variant"].nunique()) for group in groups]


def present(group: pd.DataFrame, looks: dict[str, Style]) -> list[str]:
    """The variants of one condition in the order of the looks."""
    names = set(group["variant"])
    return [variant for variant in looks if variant in names]


def cells_text(cells: pd.DataFrame) -> str:
    """How many cells stand behind one mark: "n = 1 cell each", or "medians over 1 to 5 cells"."""
    sizes = cells.groupby(["model", "seq_len", "precision", "variant"], dropna=False).size()
    low, high = int(sizes.min()), int(sizes.max())
    text = f"medians over n = {low if low == high else f'{low} to {high}'} cells"
    text = "n = 1 cell each" if high == 1 else text
    panels = cells.groupby(PANEL, dropna=False).ngroups
    if panels > MOST_PANELS:
        text += f" (of {panels} conditions at most {MOST_PANELS}: the longest sequences of the "
        text += "largest models; the tables have all)"
    return text
