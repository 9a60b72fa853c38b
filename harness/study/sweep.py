"""Runs planned cells, says how far it is, and leaves a resumable study."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.cells import store
from harness.cells.identity import Cell
from harness.cells.lock import is_running
from harness.cells.provenance import utc_now
from harness.config import RunConfig
from harness.config.groups import configs_dir
from harness.launch.launcher import OneByOne, Runner
from harness.study import live
from harness.study.estimate import Estimator, duration, total
from harness.study.plan import CellList, Known, Plan, Results
from harness.study.planner import plan
from harness.study.study_file import write_study

OnRecord = Callable[[store.Record], None]


@dataclass(frozen=True)
class Limits:
    """When to stop between cells: after so many that ran, or so many seconds."""

    cells: int | None = None
    seconds: float | None = None


@dataclass
class Outcome:
    """How a sweep ended: cells by status, and why it stopped before the end, if it did."""

    counts: dict[str, int] = field(default_factory=dict)
    left: int = 0
    stopped: str | None = None


def run_cells(
    cells: list[Cell],
    command: str,
    progress: bool = True,
    on_record: OnRecord | None = None,
) -> dict[str, int]:
    """Run every cell that has no result yet; returns how many ended with which status.

    Results that are already on disk are kept. KeyboardInterrupt stops between or within cells and
    loses nothing that was finished.
    """
    return Sweep(CellList(cells), command, Limits(), progress).run(on_record).counts


def run_cell(config: RunConfig, progress: bool = True, command: str = "") -> store.Record:
    """Run one cell in a fresh process, unless its result is already there, and return its record.

    The plain-Python door to the harness; `gefen-bench` is the other one.
    """
    records: list[store.Record] = []
    run_cells(plan([config], progress), command, progress=progress, on_record=records.append)
    return records[0]


class Sweep:
    """The cells of a plan, also those that its searches add, run until none is left.

    Stops between cells, as `Outcome.stopped` then says, when one of `limits` is reached.
    """

    def __init__(
        self,
        plan: Plan | CellList,
        command: str,
        limits: Limits,
        progress: bool = True,
        runner: Runner | None = None,
    ) -> None:
        self._plan, self._command, self._limits = plan, command, limits
        self._progress = progress
        self._runner = runner or OneByOne()
        self._outcome = Outcome()
        self._handled: set[str] = set()
        self._known = Known([], False, 0, [], Results())
        self._todo: dict[str, Cell] = {}  # known cells without a result
        self._running: dict[str, tuple[str, float]] = {}  # line in a log, share that is done
        self._warned: set[tuple[str, str]] = set()
        self._ran = 0
        self._started = time.monotonic()

    def run(self, on_record: OnRecord | None = None) -> Outcome:
        """Run; KeyboardInterrupt loses nothing that was finished."""
        self._know()
        looked = utc_now()
        write_study(self._known.cells, self._command, looked)
        self._estimator = Estimator(record_folders(self._known.cells) if self._progress else ())
        with live.view(self._progress, self._standing) as self._view:
            self._view.line(opening_line(self._known, self._estimator))
            while waiting := [c for c in self._known.cells if c.id not in self._handled]:
                if not self._handle(waiting, on_record):
                    break
                before = len(self._known.cells)
                self._know()
                if len(self._known.cells) != before:
                    write_study(self._known.cells, self._command, looked)
        return self._outcome

    def _know(self) -> None:
        """Ask the plan which cells there are now, and the disk which of the new ones have run."""
        earlier = {cell.id for cell in self._known.cells}
        self._known = self._plan.known()
        new = [cell for cell in self._known.cells if cell.id not in earlier]
        self._todo |= {cell.id: cell for cell in new if self._known.results.of(cell) is None}

    def _handle(self, waiting: list[Cell], on_record: OnRecord | None) -> bool:
        """Keep the first waiting cell or run a batch; False when a limit was reached instead."""
        results = self._known.results
        record = results.of(waiting[0])
        if record is not None:
            self._take(waiting[0], record, "kept", on_record)
            return True
        # Another command may have run some of them by now.
        self._todo = {cell.id: cell for cell in waiting if results.of(cell) is None}
        self._outcome.stopped = self._limit_reached()
        if self._outcome.stopped is not None:
            self._outcome.left = len(self._todo)
            return False
        most = None if self._limits.cells is None else self._limits.cells - self._ran
        # What another command runs comes last: only when nothing else is left is it waited for.
        free = [cell for cell in self._todo.values() if not is_running(cell)]
        batch = self._runner.batch(free or list(self._todo.values()))[:most]
        deadline = None
        if self._limits.seconds is not None:
            deadline = time.time() + self._limits.seconds - (time.monotonic() - self._started)
        for cell in batch:
            results.renew(cell)
        # Closed at once when this loop is left, so that no worker runs on after a Ctrl-C.
        run = self._runner.run(batch, self._command, deadline, self._report, wait=not free)
        with closing(run) as ended:
            for cell, record, seconds in ended:
                self._ran += 1
                self._running.pop(cell.id, None)
                self._view.end(cell.id)
                self._estimator.learn(record, store.disk_bytes(cell.directory))
                self._take(cell, record, duration(seconds), on_record)
        return True

    def _take(
        self, cell: Cell, record: store.Record, note: str, on_record: OnRecord | None
    ) -> None:
        """Count a record, tell it, and let searches go on from it."""
        number = self._number(len(self._handled) + 1)
        self._handled.add(cell.id)
        self._todo.pop(cell.id, None)
        self._plan.answer(record)
        times = f", {self._times()}" if note != "kept" else ""
        self._view.line(f"[{number}{times}] {_name(cell)}  {summary_line(record)}  ({note})")
        counts = self._outcome.counts
        counts[record.status] = counts.get(record.status, 0) + 1
        if on_record is not None:
            on_record(record)

    def _report(self, cell: Cell, values: dict[str, Any]) -> None:
        """Show what a running cell told, or why one waits."""
        if "queued" in values:
            self._view.update(cell.id, _name(cell), _name(cell), {"phase": values["queued"]})
            return
        if cell.id not in self._running:
            number = self._number(len(self._handled) + len(self._running) + 1)
            self._running[cell.id] = f"[{number}, {self._times()}] {_name(cell)}", 0.0
        head = self._running[cell.id][0]
        if "steps" in values:
            self._running[cell.id] = head, values["step"] / max(1, values["steps"])
        warning = values.get("warning")
        if warning is not None and (cell.id, warning) not in self._warned:
            self._warned.add((cell.id, warning))  # a worker elsewhere tells what it told before
            self._view.line(f"{_name(cell)}: {warning}")
        self._view.update(cell.id, head, _name(cell), values)

    def _limit_reached(self) -> str | None:
        if self._limits.cells is not None and self._ran >= self._limits.cells:
            return f"the limit of {self._limits.cells} cells"
        elapsed = time.monotonic() - self._started
        if self._limits.seconds is not None and elapsed >= self._limits.seconds:
            return f"the time budget of {duration(self._limits.seconds)}"
        return None

    def _number(self, which: int) -> str:
        return f"{which}/{len(self._known.cells)}{'+' if self._known.open else ''}"

    def _times(self) -> str:
        """Time since the start, and what is left for the waiting cells that have an estimate."""
        elapsed = duration(time.monotonic() - self._started)
        todo = dict(self._todo)
        found = [self._estimator.estimate(cell.config) for cell in todo.values()]
        shares = [self._running.get(name, ("", 0.0))[1] for name in todo]
        seconds = sum(
            estimate.seconds * (1 - share)
            for estimate, share in zip(found, shares, strict=True)
            if estimate is not None
        )
        at_once = min(self._runner.width or len(self._running), len(todo))
        more = "+" if None in found else ""
        left = duration(seconds / max(1, at_once))
        return f"{elapsed} so far, about {left}{more} left" if seconds else elapsed

    def _standing(self) -> live.Standing:
        results = set(store.RESULT_STATUSES)
        failed = sum(n for status, n in self._outcome.counts.items() if status not in results)
        return live.Standing(
            total=len(self._known.cells),
            open=self._known.open,
            done=len(self._known.cells) - len(self._todo) - failed,
            failed=failed,
            running=len(self._running),
            times=self._times(),
        )


def _name(cell: Cell) -> str:
    return f"{cell.config.part}: {cell.label}"


def record_folders(cells: list[Cell]) -> list[Path]:
    """Studies to estimate from: all below the roots of the cells, and the published ones."""
    roots = dict.fromkeys([*(cell.study_dir.parent for cell in cells), _results_dir()])
    return [folder for root in roots if root.is_dir() for folder in sorted(root.iterdir())]


def _results_dir() -> Path:
    return configs_dir().parent / "results"


def opening_line(known: Known, estimator: Estimator) -> str:
    """What is planned, what of it is to run, and what that will take."""
    waiting = [cell for cell in known.cells if known.results.of(cell) is None]
    line = f"{len(known.cells)} cells, {len(waiting)} to run"
    if waiting:
        line += f": {total(estimator.estimate(cell.config) for cell in waiting)}"
    if known.open:
        line += f"; the search adds cells as it learns, at most {known.at_most} in all"
    return f"{line}."


def summary_line(record: store.Record) -> str:
    """What a person wants to know of a cell in half a line."""
    metrics = record.metrics
    parts = [record.status]
    if record.error:
        parts.append(record.error.rstrip("."))
    if metrics.get("state_bytes_per_parameter") is not None:
        parts.append(f"state {metrics['state_bytes_per_parameter']:.3f} B/param")
    if metrics.get("step_median_seconds") is not None:
        parts.append(f"step {metrics['step_median_seconds'] * 1e3:.0f} ms")
    if metrics.get("final_eval_loss") is not None:
        parts.append(f"{metrics['eval_split']} loss {metrics['final_eval_loss']:.4f}")
    return ", ".join(parts)


def dry_run(known: Known) -> str:
    """The plan as text: every cell, whether its result is there, else how long it may take."""
    estimator = Estimator(record_folders(known.cells))
    lines = []
    for cell in known.cells:
        record = known.results.of(cell)
        estimate = None if record else estimator.estimate(cell.config)
        status = record.status if record else "to run"
        time_left = f"~{duration(estimate.seconds)}" if estimate else "" if record else "~?"
        lines.append(f"{cell.id}  {status:<9} {time_left:<8} {cell.config.part:<12} {cell.label}")
    return "\n".join([*lines, *known.notes, opening_line(known, estimator)])
