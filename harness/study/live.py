"""What a sweep shows while it runs: a table that redraws on a terminal, plain lines in a log."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

LOG_SECONDS = 20.0  # between two lines of one cell in a log
BAR = "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}]{postfix}"
LINES_BESIDE_ROWS = 5  # headings, the line of the rows that do not fit, the prompt


@dataclass(frozen=True)
class Standing:
    """How far a sweep is. `done` are cells with a result, out-of-memory and diverged included."""

    total: int
    open: bool
    done: int
    failed: int
    running: int
    times: str

    def sentence(self) -> str:
        """The line above the table; `+` where a search may add cells."""
        waiting = max(0, self.total - self.done - self.failed - self.running)
        counts = f"{self.done} done, {self.running} running, {waiting} waiting"
        more = "+" if self.open else ""
        return f"{self.total}{more} cells: {counts}, {self.failed} failed. {self.times}"


class View(Protocol):
    """Where a sweep says what happens; used from one thread, but for `update`."""

    def line(self, text: str) -> None:
        """A line that stays."""

    def update(self, key: str, head: str, name: str, values: dict[str, Any]) -> None:
        """What a running cell told last: phase, step, steps, loss, tokens_per_second.

        `head` is the cell's line in a log, `name` its row in a table.
        """

    def end(self, key: str) -> None:
        """The cell runs no more."""


class Silent:
    """Shows nothing."""

    def line(self, text: str) -> None:
        """Nothing."""

    def update(self, key: str, head: str, name: str, values: dict[str, Any]) -> None:
        """Nothing."""

    def end(self, key: str) -> None:
        """Nothing."""


class Lines:
    """For logs: a line a cell, and of each running cell a line every `LOG_SECONDS`."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm[Any]] = {}

    def line(self, text: str) -> None:
        """To standard error."""
        print(text, file=sys.stderr, flush=True)

    def update(self, key: str, head: str, name: str, values: dict[str, Any]) -> None:
        """The cell's progress bar."""
        if key not in self._bars:
            self._bars[key] = tqdm(
                desc=head,
                leave=False,
                position=0,  # elsewhere tqdm would move the cursor, which a log has not
                mininterval=LOG_SECONDS,
                dynamic_ncols=True,
                bar_format=BAR,
                total=1,
            )
        bar = self._bars[key]
        note = f"loss {values['loss']:.3f}" if "loss" in values else values.get("phase", "")
        bar.set_postfix_str(f" {note}", refresh=False)
        if "steps" in values:
            bar.total = values["steps"]
            bar.update(values["step"] - bar.n)

    def end(self, key: str) -> None:
        """Close the bar."""
        if key in self._bars:
            self._bars.pop(key).close()


@dataclass
class _Row:
    name: str
    values: dict[str, Any] = field(default_factory=dict)


class Screen:
    """For terminals: the sweep's standing and a row for each running cell."""

    def __init__(self, console: Console, standing: Callable[[], Standing]) -> None:
        self._console, self._standing = console, standing
        self._rows: dict[str, _Row] = {}
        self._lock = threading.Lock()  # rows come from the thread that reads a worker

    def line(self, text: str) -> None:
        """Above the table."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, key: str, head: str, name: str, values: dict[str, Any]) -> None:
        """The cell's row; a phase without steps or loss keeps those told before."""
        with self._lock:
            row = self._rows.setdefault(key, _Row(name))
            row.values = {**row.values, **values}

    def end(self, key: str) -> None:
        """Take the row away."""
        with self._lock:
            self._rows.pop(key, None)

    def __rich__(self) -> Group:
        with self._lock:
            rows = list(self._rows.values())
        room = max(1, self._console.height - LINES_BESIDE_ROWS)
        parts: list[Any] = [Text(self._standing().sentence())]
        if rows:
            parts.append(_table(rows[:room]))
        if len(rows) > room:
            parts.append(Text(f"and {len(rows) - room} more running"))
        return Group(*parts)


def _table(rows: list[_Row]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 1), pad_edge=False, expand=True)
    table.add_column("running", overflow="fold", ratio=1)
    for heading in ("step", "loss", "tokens/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        values = row.values
        step = f"{values['step']}/{values['steps']}" if "steps" in values else "-"
        loss = f"{values['loss']:.3f}" if values.get("loss") is not None else "-"
        speed = values.get("tokens_per_second")
        # Before the first loss, and in memory runs, the phase is what there is to say.
        phase = "" if "loss" in values else values.get("phase", "")
        name = Text(row.name) if not phase else Text.assemble(row.name, (f"  {phase}", "dim"))
        table.add_row(name, step, loss, "-" if speed is None else f"{speed:,.0f}")
    return table


@contextmanager
def view(progress: bool, standing: Callable[[], Standing]) -> Iterator[View]:
    """The table on a terminal that can redraw, lines elsewhere, nothing without `progress`.

    The table is gone when the block ends; the lines stay.
    """
    console = Console(stderr=True)
    if not progress:
        yield Silent()
    elif not console.is_terminal or console.is_dumb_terminal:
        yield Lines()
    else:
        screen = Screen(console, standing)
        with Live(screen, console=console, transient=True, refresh_per_second=4):
            yield screen
