"""The sections of the page: which figures and tables a study has, in the order of reading."""

from collections.abc import Sequence
from dataclasses import dataclass

from reports.figures.registry import Drawn
from reports.tables.registry import Grid, Section


@dataclass(frozen=True)
class Filled:
    """One section with its figures and tables."""

    section: Section
    drawings: list[Drawn]
    grids: list[Grid]


def sections(drawings: Sequence[Drawn], grids: Sequence[Grid]) -> list[Filled]:
    """The sections for which there are figures or tables, by their place."""
    found = {drawn.section for drawn in drawings} | {grid.section for grid in grids}
    return [
        Filled(
            section,
            [drawn for drawn in drawings if drawn.section == section],
            [grid for grid in grids if grid.section == section],
        )
        for section in sorted(found, key=lambda section: (section.place, section.key))
    ]
