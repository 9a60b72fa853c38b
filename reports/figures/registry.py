"""What a figure file offers, and all that do: a new file in this folder is found by itself.

A figure file has `figures(report)`, the figures that a study's records support; none is drawn
there, since drawing takes most of a report's time and goes to several processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from matplotlib.figure import Figure

from reports import figures as package
from reports.data.modules import offering
from reports.data.report import Report
from reports.figures.layout import roomy
from reports.tables.registry import Section


@dataclass(frozen=True)
class Drawn:
    """A figure: section, file name without ending, title, caption, the cells it shows.

    `caption` says what is shown, units, n and intervals. `draw` makes it, in the process that saves
    it. `place` orders the figures of a section.
    """

    section: Section
    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]
    cells: tuple[str, ...]
    place: int = 0

    @cached_property
    def figure(self) -> Figure:
        """The figure, drawn when it is first asked for."""
        return roomy(self.draw())


def draw_all(report: Report) -> list[Drawn]:
    """Every figure that the study's records support, in the order of the page."""
    found = [drawn for module in offering(package, "figures") for drawn in module.figures(report)]
    return sorted(found, key=lambda drawn: (drawn.section.place, drawn.place))


def ids(cells: pd.DataFrame) -> tuple[str, ...]:
    """The identities of cells."""
    return tuple(cells["id"])
