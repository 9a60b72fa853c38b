"""All cells of one command: fixed lists at once, searches as far as their answers reach."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from harness.cells import store
from harness.cells.arm import differences
from harness.cells.identity import Cell
from harness.config import RunConfig, to_dict
from harness.errors import UserError
from harness.study.planner import Planner, Workers
from harness.study.search import Point, Rates, Search


class Request(NamedTuple):
    """Something to run: what decides its cells, and how a point of it becomes a configuration."""

    search: Search
    configure: Callable[[Point], RunConfig]


class Results:
    """The results on disk that count for one command: all but those that it is to run again.

    `again` are statuses, or ids of cells. Raises UserError for anything else.
    """

    def __init__(self, again: Collection[str] = ()) -> None:
        self._again, self._renewed = set(again), set[str]()
        for word in again:
            if word not in store.STATUSES and not re.fullmatch("[0-9a-f]{16}", word):
                raise UserError(
                    f"--rerun {word} is not known; allowed: {', '.join(store.STATUSES)}, or the id "
                    "of a cell, 16 hexadecimal digits."
                )

    def of(self, cell: Cell) -> store.Record | None:
        """The cell's result; None where it has to run."""
        record = cell.finished()
        if record is None or cell.id in self._renewed:
            return record
        return None if {record.status, cell.id} & self._again else record

    def renew(self, cell: Cell) -> None:
        """Make way for the new result of a cell that is about to run."""
        if cell.finished() is not None and self.of(cell) is None:
            (cell.directory / store.RECORD_FILE).unlink(missing_ok=True)
        self._renewed.add(cell.id)


class Known(NamedTuple):
    """What is known of a plan by now.

    `cells` holds each cell once, in the order to run them, and `results` what they have on disk;
    `open` says that answers may add more, `at_most` in all; `notes` are the conclusions of the
    searches that have ended.
    """

    cells: list[Cell]
    open: bool
    at_most: int
    notes: list[str]
    results: Results


class CellList:
    """A plan whose cells are all known, for callers that have planned them."""

    def __init__(self, cells: list[Cell]) -> None:
        self._known = Known(cells, False, len(cells), [], Results())

    def answer(self, record: store.Record) -> None:
        """Records change nothing here."""

    def known(self) -> Known:
        """The cells."""
        return self._known


@dataclass(frozen=True)
class _Entry:
    request: Request
    cells: dict[str, Cell]  # by the text of the point


class Plan:
    """Grows as records come in; `answer` hands it a record of this command's own."""

    def __init__(
        self,
        requests: list[Request],
        progress: bool = True,
        workers: Workers | None = None,
        rerun: Collection[str] = (),
    ) -> None:
        """Check and name every cell that is known from the start, before anything runs.

        `workers` will run them, None for this process; results whose status or id is in `rerun`
        count as not there. Raises UserError with one sentence.
        """
        self._results = Results(rerun)
        self._labels: dict[str, str] = {}
        self._planner = Planner(progress, workers)
        self._answers: dict[str, store.Record] = {}
        self._entries = [_Entry(request, {}) for request in requests]
        starts = [(e, p) for e in self._entries for p in e.request.search.state(_unknown).points]
        configs = [entry.request.configure(point) for entry, point in starts]
        for (entry, point), cell in zip(starts, self._planner.cells(configs), strict=True):
            entry.cells[_text(point)] = cell
        known = self.known()
        missing = set(rerun) - set(store.STATUSES) - {cell.id for cell in known.cells}
        if missing and not known.open:
            raise UserError(
                f"--rerun {min(missing)} is no cell of this plan; --dry-run lists their ids."
            )

    @property
    def chooses_rates(self) -> bool:
        """Whether a learning-rate search is part of it."""
        return any(isinstance(entry.request.search, Rates) for entry in self._entries)

    def answer(self, record: store.Record) -> None:
        """Take note of a record, whatever its status; searches go on from it."""
        self._answers[record.id] = record

    def known(self) -> Known:
        """Replay all searches over the answers and over the results on disk."""
        cells: dict[str, Cell] = {}
        notes: list[str] = []
        is_open, at_most = False, 0
        for entry in self._entries:
            state = entry.request.search.state(partial(self._look, entry))
            for point in state.points:
                cell = self._cell(entry, point)
                cells.setdefault(cell.id, cell)
            is_open |= state.open
            at_most += entry.request.search.at_most() if state.open else len(state.points)
            notes += state.notes
        if cells.keys() != self._labels.keys():
            self._labels = labels(cells.values())
        named = [replace(cell, label=self._labels[name]) for name, cell in cells.items()]
        return Known(named, is_open, at_most, notes, self._results)

    def _look(self, entry: _Entry, point: Point) -> store.Record | None:
        cell = self._cell(entry, point)
        if cell.id not in self._answers:
            record = self._results.of(cell)
            if record is None:
                return None
            self._answers[cell.id] = record
        return self._answers[cell.id]

    def _cell(self, entry: _Entry, point: Point) -> Cell:
        text = _text(point)
        if text not in entry.cells:
            (entry.cells[text],) = self._planner.cells([entry.request.configure(point)])
        return entry.cells[text]


def labels(cells: Iterable[Cell]) -> dict[str, str]:
    """Labels by id; where unlike cells of a part would share one, with the settings that differ."""
    alike: dict[tuple[str, ...], dict[str, Cell]] = defaultdict(dict)
    found = {cell.id: cell for cell in cells}
    for cell in found.values():
        alike[_shown(cell)].setdefault(cell.arm, cell)
    notes: dict[str, str] = {}
    for arms in alike.values():
        told = differences(to_dict(cell.config) for cell in arms.values())
        notes |= dict(zip(arms, told, strict=True)) if len(arms) > 1 else {}
    named = {}
    for name, cell in found.items():
        *start, rate, seed = cell.label.split("/")
        note = notes.get(cell.arm)
        named[name] = "/".join([*start, *([note] if note else []), rate, seed])
    return named


def _shown(cell: Cell) -> tuple[str, ...]:
    """What tells of a cell in a sweep, but for its seed."""
    return cell.config.study.name, cell.config.part, cell.label.rpartition("/")[0]


def _unknown(point: Point) -> None:
    return None


def _text(point: Point) -> str:
    return repr(sorted(point.items()))
