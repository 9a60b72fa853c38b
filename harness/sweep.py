"""Runs planned cells one after another, says how far it is, and leaves a resumable study."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from harness import store
from harness.cells import Cell
from harness.estimates import Estimator, duration, total
from harness.groups import configs_dir
from harness.launcher import launch
from harness.planning import CellList, Known, Plan
from harness.provenance import utc_now
from harness.study_file import write_study

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


class Sweep:
    """The cells of a plan, also those that its searches add, run until none is left.

    Stops between cells, as `Outcome.stopped` then says, when one of `limits` is reached.
    """

    def __init__(
        self, plan: "Plan | CellList", command: str, limits: Limits, progress: bool = True
    ) -> None:
        self._plan, self._command, self._limits = plan, command, limits
        self._progress = progress
        self._outcome = Outcome()
        self._handled: set[str] = set()
        self._ran = 0
        self._started = time.monotonic()

    def run(self, on_record: OnRecord | None = None) -> Outcome:
        """Run; KeyboardInterrupt loses nothing that was finished."""
        known = self._plan.known()
        looked = utc_now()
        write_study(known.cells, self._command, looked)
        self._estimator = Estimator(record_folders(known.cells) if self._progress else ())
        self._say(opening_line(known, self._estimator))
        while waiting := [cell for cell in known.cells if cell.id not in self._handled]:
            if not self._handle(waiting, known, on_record):
                break
            before, known = known, self._plan.known()
            if len(known.cells) != len(before.cells):
                write_study(known.cells, self._command, looked)
        return self._outcome

    def _handle(self, waiting: list[Cell], known: Known, on_record: OnRecord | None) -> bool:
        """Keep or run the first waiting cell; False when a limit was reached instead."""
        cell, total_cells = waiting[0], f"{len(known.cells)}{'+' if known.open else ''}"
        number = f"{len(self._handled) + 1}/{total_cells}"
        name = f"{cell.config.part}: {cell.label}"
        record, note = cell.finished(), "kept"
        if record is None:
            self._outcome.stopped = self._limit_reached()
            if self._outcome.stopped is not None:
                self._outcome.left = sum(cell.finished() is None for cell in waiting)
                return False
            started = time.monotonic()
            head = f"[{number}, {self._times(waiting)}] {name}"
            record = _run_one(cell, self._command, head, self._progress)
            note = duration(time.monotonic() - started)
            self._ran += 1
            self._estimator.learn(record, cell.directory)
        self._handled.add(cell.id)
        self._plan.answer(record)
        times = f", {self._times(waiting[1:])}" if note != "kept" else ""
        self._say(f"[{number}{times}] {name}  {summary_line(record)}  ({note})")
        counts = self._outcome.counts
        counts[record.status] = counts.get(record.status, 0) + 1
        if on_record is not None:
            on_record(record)
        return True

    def _limit_reached(self) -> str | None:
        if self._limits.cells is not None and self._ran >= self._limits.cells:
            return f"the limit of {self._limits.cells} cells"
        elapsed = time.monotonic() - self._started
        if self._limits.seconds is not None and elapsed >= self._limits.seconds:
            return f"the time budget of {duration(self._limits.seconds)}"
        return None

    def _times(self, waiting: list[Cell]) -> str:
        """Time since the start, and what is left for the waiting cells that have an estimate."""
        elapsed = duration(time.monotonic() - self._started)
        found = [self._estimator.estimate(c.config) for c in waiting if c.finished() is None]
        seconds = sum(estimate.seconds for estimate in found if estimate is not None)
        more = "+" if None in found else ""
        return f"{elapsed} so far, about {duration(seconds)}{more} left" if seconds else elapsed

    def _say(self, line: str) -> None:
        if self._progress:
            print(line, file=sys.stderr, flush=True)


def record_folders(cells: list[Cell]) -> list[Path]:
    """Studies to estimate from: all below the roots of the cells, and the published ones."""
    roots = dict.fromkeys([*(cell.study_dir.parent for cell in cells), _results_dir()])
    return [folder for root in roots if root.is_dir() for folder in sorted(root.iterdir())]


def _results_dir() -> Path:
    return configs_dir().parent / "results"


def opening_line(known: Known, estimator: Estimator) -> str:
    """What is planned, what of it is to run, and what that will take."""
    waiting = [cell for cell in known.cells if cell.finished() is None]
    line = f"{len(known.cells)} cells, {len(waiting)} to run"
    if waiting:
        line += f": {total(estimator.estimate(cell.config) for cell in waiting)}"
    if known.open:
        line += f"; the search adds cells as it learns, at most {known.at_most} in all"
    return f"{line}."


def _run_one(cell: Cell, command: str, head: str, progress: bool) -> store.Record:
    """One cell under a progress bar: a line that redraws on a terminal, a line a while in a log."""
    interactive = sys.stderr.isatty()
    with tqdm(
        desc=head,
        disable=not progress,
        leave=False,
        mininterval=0.2 if interactive else 20,
        dynamic_ncols=True,
        bar_format="{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}]{postfix}",
        total=1,
    ) as bar:

        def show(values: dict[str, Any]) -> None:
            note = f"loss {values['loss']:.3f}" if "loss" in values else values.get("phase", "")
            bar.set_postfix_str(f" {note}", refresh=interactive)
            if "steps" in values:
                bar.total = values["steps"]
                bar.update(values["step"] - bar.n)

        return launch(cell, command, show)


def summary_line(record: store.Record) -> str:
    """What a person wants to know of a cell in half a line."""
    metrics = record.metrics
    parts = [record.status]
    if record.error:
        parts.append(record.error)
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
        record = cell.finished()
        estimate = None if record else estimator.estimate(cell.config)
        status = record.status if record else "to run"
        time_left = f"~{duration(estimate.seconds)}" if estimate else "" if record else "~?"
        lines.append(f"{cell.id}  {status:<9} {time_left:<8} {cell.config.part:<12} {cell.label}")
    return "\n".join([*lines, *known.notes, opening_line(known, estimator)])
