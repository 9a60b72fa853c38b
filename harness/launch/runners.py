"""How the waiting cells of a sweep are run: one after another, or by an engine's workers."""

import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, NamedTuple, Protocol

from harness.cells import store
from harness.cells.identity import Cell
from harness.launch.launcher import launch

Report = Callable[[Cell, dict[str, Any]], None]


class Ended(NamedTuple):
    """A cell whose record is there, and the seconds that it took."""

    cell: Cell
    record: store.Record
    seconds: float


class Runner(Protocol):
    """Runs cells: one after another here, or spread over workers (`harness.launch.dispatch`)."""

    @property
    def width(self) -> int | None:
        """How many cells run at once, as far as known."""

    def batch(self, cells: list[Cell]) -> list[Cell]:
        """Those of the waiting cells that are to be run next, before anything is asked again."""

    def run(
        self, cells: list[Cell], command: str, deadline: float | None, report: Report
    ) -> Generator[Ended, None, None]:
        """Yield each cell as it ends; none is started after `deadline` (time.time())."""


class OneByOne:
    """The runner without workers."""

    width = 1

    def batch(self, cells: list[Cell]) -> list[Cell]:
        """The first."""
        return cells[:1]

    def run(
        self, cells: list[Cell], command: str, deadline: float | None, report: Report
    ) -> Generator[Ended, None, None]:
        """Run them in fresh processes."""
        for cell in cells:
            started = time.monotonic()
            report(cell, {"phase": "starting"})
            record = launch(cell, command, partial(report, cell))
            yield Ended(cell, record, time.monotonic() - started)
