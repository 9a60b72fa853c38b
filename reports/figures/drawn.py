"""A figure with what the page says about it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from matplotlib.figure import Figure

from reports.figures.layout import roomy


@dataclass(frozen=True)
class Drawn:
    """A figure: section, file name without ending, title, caption, the cells it shows.

    `draw` makes it, in the process that saves it: drawing and rendering take most of the time.
    """

    section: str
    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]
    cells: tuple[str, ...]

    @cached_property
    def figure(self) -> Figure:
        """The figure, drawn when it is first asked for."""
        return roomy(self.draw())
