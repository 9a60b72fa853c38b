"""What a table file offers, and all that do: a new file in this folder is found by itself.

A table file has `grids(report, raw)`, tables for the page in human units, or `csv(report)`, tables
by name in raw units (bytes, seconds, nats/token), which are written as NAME.csv and handed to all
`grids` as `raw`; mostly both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from reports import tables
from reports.data.modules import offering
from reports.data.report import Report

Raw = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Section:
    """A section of the page: its anchor, its title and its place (sections stand by rising place).

    The file of its first table or figure defines it, others import it from there.
    """

    key: str
    title: str
    place: int


@dataclass(frozen=True)
class Brief:
    """How a table stands in summary.md: its title there, columns (default all), most rows."""

    title: str
    columns: Sequence[str] = ()
    most: int | None = None


@dataclass(frozen=True)
class Grid:
    """A table of the page: what its numbers are (`note`), and the view that is shown.

    `place` orders the tables of a section; `anchors` make its rows the targets of links to cells,
    `folded` hides it until it is asked for.
    """

    section: Section
    title: str
    note: str
    view: pd.DataFrame
    place: int = 0
    anchors: bool = False
    folded: bool = False
    brief: Brief | None = None


def raw_tables(report: Report) -> dict[str, pd.DataFrame]:
    """Every table in raw units by the name of its CSV file, those without rows included."""
    found: dict[str, pd.DataFrame] = {}
    for module in offering(tables, "csv"):
        found |= module.csv(report)
    return found


def all_grids(report: Report, raw: Raw) -> list[Grid]:
    """Every table of the page that has rows, in the order of the page."""
    found = [grid for module in offering(tables, "grids") for grid in module.grids(report, raw)]
    shown = [grid for grid in found if not grid.view.empty]
    return sorted(shown, key=lambda grid: (grid.section.place, grid.place))
