"""Spreads the cells of a sweep over the workers of an engine: joblib, submitit, SLURM or Ray.

Each cell is a job; a job runs its cell as `harness.launch.launcher` does and leaves its record in
the one store. This process only watches the folders of the jobs, so that it neither receives
results nor can lose them. Layout: `<root>/<study>/dispatch/<sweep>/<round>/<cell id>/`.
"""

import os
import shutil
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from harness.cells import store
from harness.cells.code import CodeChanged
from harness.cells.identity import Cell
from harness.cells.lock import is_running
from harness.cells.provenance import utc_now
from harness.errors import UserError
from harness.launch.dispatch_job import (
    OUTCOME_FILE,
    PROGRESS_FILE,
    STOP_FILE,
    visible_devices,
    write_plan,
)
from harness.launch.launcher import Ended, Report, record_loss
from harness.launch.slurm import Queue

POLL_SECONDS = 0.5
QUEUE_SECONDS, QUEUE_POLL_SECONDS = 15.0, 2.0  # between questions to a queue, and at the end
STOP_SECONDS = 30.0  # for jobs to end their workers after Ctrl-C
MAX_LOSSES = 3


class Engine(Protocol):
    """What starts jobs; `harness.launch.hydra_launchers` has the real ones."""

    name: str

    @property
    def shares_machine(self) -> bool:
        """Whether the jobs run beside each other on this machine."""

    @property
    def at_once(self) -> int | None:
        """How many jobs may be handed over together; None for any number."""

    @property
    def width(self) -> int | None:
        """How many jobs run at once, as far as known."""

    def queue(self, folder: Path) -> Queue | None:
        """Where the jobs of `folder` wait and go on by themselves; None where they do not."""

    def launch(self, folder: Path, names: Sequence[str]) -> None:
        """Run `dispatch_job.run_planned(folder / name)` for each name; return when all ended."""


class Dispatcher:
    """Runs batches of cells through an engine.

    A worker that is lost (killed, its node gone) takes no result along: its cell is handed over
    again, the last of `MAX_LOSSES` times by itself, and is recorded as crashed after that.
    """

    def __init__(self, engine: Engine, keep_running: bool = False) -> None:
        """UserError where `keep_running` is asked of an engine whose jobs end with this process."""
        self._engine, self._keep_running = engine, keep_running
        if keep_running and engine.queue(Path()) is None:
            raise UserError(
                f"--keep-running does not work with {engine.name}, whose jobs end with the "
                "command; it is for hydra/launcher=submitit_slurm."
            )
        self._name = f"{utc_now()[:19].replace(':', '')}-{os.getpid()}"
        self._rounds = 0
        self._losses: dict[str, int] = {}

    @property
    def width(self) -> int | None:
        """How many cells run at once, as far as known."""
        return self._engine.width

    def batch(self, cells: list[Cell]) -> list[Cell]:
        """Those of the cells that are to be handed over together."""
        return cells[: self._engine.at_once]

    def run(
        self, cells: list[Cell], command: str, deadline: float | None, report: Report, wait: bool
    ) -> Generator[Ended, None, None]:
        """Yield each cell as it ends; those that `deadline` (time.time()) cuts off are left out,
        and without `wait` those that another command runs.

        `report` gets the progress of running cells. Raises UserError where the engine cannot
        start anything. Closed or interrupted, it cancels the jobs that wait, tells those that run
        to end (unless they are to go on) and waits a while for them.
        """
        folder = (cells[0].study_dir / "dispatch" / self._name).resolve()
        left = {cell.id: cell for cell in cells}
        clean = False
        try:
            while left:
                alone = [c for c in left.values() if self._losses.get(c.id, 0) == MAX_LOSSES - 1]
                self._rounds += 1
                turn = _Round(folder / str(self._rounds), alone[:1] or list(left.values()))
                devices = visible_devices() if self._engine.shares_machine else []
                try:
                    turn.start(self._engine, command, deadline, devices, wait)
                    while turn.goes_on():
                        for ended in turn.watch(report):
                            del left[ended.cell.id]
                            yield ended
                finally:
                    clean = turn.stop(self._keep_running)
                if turn.changed is not None:  # those that ran already have ended as they should
                    raise turn.changed
                for cell in turn.skipped:
                    del left[cell.id]
                yield from self._lost(turn, left, command, report)
        finally:
            if clean and not self._losses:  # else a queued job, or a person, wants to read it
                shutil.rmtree(folder, ignore_errors=True)

    def _lost(
        self, turn: "_Round", left: dict[str, Cell], command: str, report: Report
    ) -> Iterator[Ended]:
        """Count the losses of a round; yields the cells that have had too many."""
        lost = [cell for cell in turn.cells if cell.id in left and turn.began(cell)]
        if left and not lost and not turn.ended:
            raise UserError(f"{self._engine.name} could not start a cell: {turn.reason()}")
        for cell in lost:
            self._losses[cell.id] = self._losses.get(cell.id, 0) + 1
            if self._losses[cell.id] >= MAX_LOSSES:
                reason = f"Its worker was lost {MAX_LOSSES} times. {turn.reason()}"
                record = record_loss(cell, command, reason, partial(report, cell))
                yield Ended(left.pop(cell.id), record, 0.0)


class _Round:
    """Jobs that are handed over together; each has a folder below `folder`."""

    def __init__(self, folder: Path, cells: list[Cell]) -> None:
        self.folder, self.cells = folder, cells
        self.ended: set[str] = set()
        self.skipped: list[Cell] = []
        self.changed: CodeChanged | None = None
        self._error: BaseException | str | None = None
        self._told: dict[str, str] = {}
        self._thread = threading.Thread(target=lambda: None)
        self._last_look = False
        self._queue: Queue | None = None
        self._asked = 0.0

    def start(
        self, engine: Engine, command: str, deadline: float | None, devices: list[str], wait: bool
    ) -> None:
        """Write the plans and hand the jobs over, in a thread: engines block until all ended."""
        self._queue, self._asked = engine.queue(self.folder), time.monotonic()
        for cell in self.cells:
            write_plan(self.folder / cell.id, cell, command, deadline, devices, wait)

        def hand_over() -> None:
            try:
                engine.launch(self.folder, [cell.id for cell in self.cells])
            except BaseException as error:  # told by `reason`; the store says what was finished
                self._error = error

        self._thread = threading.Thread(target=hand_over, daemon=True)
        self._thread.start()

    def goes_on(self) -> bool:
        """Wait a moment; False after one more look at the end.

        An engine that has lost one worker gives up on the others, which may run on: theirs is
        waited for, since a cell that runs holds its lock.
        """
        if self._last_look:
            return False
        self._thread.join(POLL_SECONDS)
        if not self._thread.is_alive():
            waiting = [cell for cell in self.cells if cell.id not in self.ended]
            self._last_look = not any(self.began(c) and is_running(c) for c in waiting)
            time.sleep(0 if self._last_look else POLL_SECONDS)
        return True

    def watch(self, report: Report) -> Iterator[Ended]:
        """Pass on what the jobs told since the last time; yields the cells that have a record."""
        self._tell_queue(report)
        for cell in self.cells:
            if cell.id in self.ended:
                continue
            outcome, progress = (self.folder / cell.id / n for n in (OUTCOME_FILE, PROGRESS_FILE))
            if outcome.exists():
                self.ended.add(cell.id)
                values = store.read_json(outcome)
                if "record" in values:
                    yield Ended(cell, store.Record.from_dict(values["record"]), values["seconds"])
                elif values.get("skipped"):
                    self.skipped.append(cell)
                elif values.get("changed"):
                    self.changed = CodeChanged(values["error"])
                else:
                    self._error = str(values["error"])
            elif progress.exists():
                text = progress.read_text()
                if text != self._told.get(cell.id):
                    self._told[cell.id] = text
                    report(cell, store.read_json(progress))

    def began(self, cell: Cell) -> bool:
        """Whether a worker had the cell in its hands."""
        return (self.folder / cell.id / PROGRESS_FILE).exists()

    def _tell_queue(self, report: Report) -> None:
        """Why jobs wait, told with the first cell that does."""
        if self._queue is None or time.monotonic() - self._asked < QUEUE_SECONDS:
            return
        self._asked = time.monotonic()
        reasons = self._queue.waiting()
        waiting = [c for c in self.cells if c.id not in self.ended and not self.began(c)]
        if reasons and waiting:
            report(waiting[0], {"queued": f"jobs wait in the queue: {reasons}"})

    def stop(self, keep_running: bool) -> bool:
        """Let no job start any more, end those that run unless told, and wait for the engine.

        Returns whether the engine has ended, and without an error.
        """
        store.write_json_atomic(self.folder / STOP_FILE, {"keep_running": keep_running})
        if self._queue is None:
            self._thread.join(STOP_SECONDS)
        elif self._thread.is_alive():
            self._queue.cancel(running=False)
            deadline = time.monotonic() + STOP_SECONDS
            while not keep_running and time.monotonic() < deadline and not self._queue.is_empty():
                self._thread.join(QUEUE_POLL_SECONDS)
            if not keep_running:  # those that did not see the file, or had just been handed over
                self._queue.cancel(running=True)
        return not self._thread.is_alive() and self._error is None

    def reason(self) -> str:
        """In a sentence, what the engine or a job said last."""
        if self._error is None:
            return "The engine gave no reason."
        if isinstance(self._error, str):
            return self._error
        first = (str(self._error).strip().splitlines() or [""])[0]
        return f"{type(self._error).__name__}: {first}"[:300]
