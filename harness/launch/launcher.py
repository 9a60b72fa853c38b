"""The parent's side of a cell: one fresh process, watched until it ends in a recorded status."""

import contextlib
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from harness.cells import store
from harness.cells.code import check_code
from harness.cells.identity import Cell, blank_record, job
from harness.cells.lock import Busy, OnProgress, Stopped, locked
from harness.cells.messages import FACTS_MARK, PROGRESS_MARK
from harness.cells.provenance import memory_bytes, utc_now
from harness.errors import UserError
from harness.launch import process

Report = Callable[[Cell, dict[str, Any]], None]


def launch(
    cell: Cell,
    command: str,
    on_progress: OnProgress,
    stopped: Stopped = lambda: False,
    wait: bool = True,
) -> store.Record:
    """Run `cell` in a fresh process and return its record, which is on disk by then.

    Another process that runs the same cell is waited for, and its result taken; without `wait`
    that raises Busy.
    KeyboardInterrupt ends the worker, leaves an `interrupted` record and is raised again;
    it is raised here when `stopped`, asked every second, says so. Raises CodeChanged where the
    code is not what the cell was planned with.
    """
    cell.directory.mkdir(parents=True, exist_ok=True)
    with locked(cell, on_progress, stopped, wait):
        finished = cell.finished()
        if finished is not None:
            return finished
        check_code(cell.origin.files)
        task = job(cell, _next_attempt(cell.directory), command)
        store.write_json_atomic(cell.directory / "job.json", task)
        record = _run(cell, task, on_progress, stopped)
        if not record.is_result:  # the worker may have refused code that changed as it started
            check_code(cell.origin.files)
        return record


def record_loss(cell: Cell, command: str, error: str, on_progress: OnProgress) -> store.Record:
    """Record as crashed a cell that was lost together with the process that called `launch`.

    Where another process runs it by now, or has, its result is waited for and taken, as `launch`
    does.
    """
    cell.directory.mkdir(parents=True, exist_ok=True)
    with locked(cell, on_progress, stopped=lambda: False):
        finished = cell.finished()
        if finished is not None:
            return finished
        task = job(cell, max(1, _next_attempt(cell.directory) - 1), command)
        return _failed(cell, blank_record(task, cell.config.device), "crashed", error, {})


def _next_attempt(directory: Path) -> int:
    try:
        return int(json.loads((directory / "job.json").read_text())["attempt"]) + 1
    except (FileNotFoundError, ValueError, KeyError):
        return 1


def _run(
    cell: Cell, task: dict[str, Any], on_progress: OnProgress, stopped: Stopped
) -> store.Record:
    kills = _oom_kills()
    failure_record = blank_record(task, cell.config.device)
    facts: dict[str, Any] = {}
    with (cell.directory / "log.txt").open("a") as log:
        worker = process.start(cell, log)
        reader = threading.Thread(
            target=_relay, args=(worker.stdout, log, on_progress, facts), daemon=True
        )
        reader.start()
        failure, code = None, 0
        try:
            code = _wait(worker, cell.config.launch.timeout_seconds, stopped)
        except subprocess.TimeoutExpired:
            worker.kill()
            limit = cell.config.launch.timeout_seconds
            failure = ("timeout", f"Stopped after launch.timeout_seconds={limit:g}.")
        except KeyboardInterrupt:
            worker.kill()
            if _written(cell, task) is None:
                _failed(cell, failure_record, "interrupted", "Interrupted by the user.", facts)
            raise
        reader.join(timeout=10)
    # A worker that was ended while it closed its dashboard has its result on disk already.
    record = _written(cell, task)
    if record is not None:
        return record
    who = facts.get("who", "The worker")
    log_file = cell.directory / "log.txt"
    status, error = failure or _explain(code, kills, log_file, who)
    return _failed(cell, failure_record, status, error, facts)


def _wait(worker: process.Process, seconds: float, stopped: Stopped) -> int:
    """Its exit code; raises TimeoutExpired after `seconds`, KeyboardInterrupt if told."""
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        try:
            return worker.wait(max(0.0, min(1.0, left)))
        except subprocess.TimeoutExpired:
            if stopped():
                raise KeyboardInterrupt from None
            if left <= 1.0:
                raise


def _written(cell: Cell, task: dict[str, Any]) -> store.Record | None:
    """The record that the worker of this attempt wrote, if it came to that."""
    try:
        record = store.read_record(cell.directory)
    except UserError:
        return None
    return record if record.attempt == task["attempt"] else None


def _failed(
    cell: Cell, record: store.Record, status: str, error: str, facts: dict[str, Any]
) -> store.Record:
    """Write the record of a worker that could not: with what it had told before it ended.

    `failure_bytes` of an oom is then the most that it had reported at the start of a phase or at
    a logged step: a lower bound of what it held when the kernel ended it.
    """
    record.status, record.error = status, error
    record.metrics = dict(facts.get("metrics", {}))
    if "phase" in facts:
        record.metrics["failed_phase"] = facts["phase"]
    if status == "oom":
        record.metrics["failure_bytes"] = facts.get("bytes")
    record.provenance["finished_utc"] = utc_now()
    store.write_record(cell.directory, record)
    return record


def _relay(stream: IO[str], log: IO[str], on_progress: OnProgress, facts: dict[str, Any]) -> None:
    """Progress lines go to the caller, facts to `facts`, what else a library prints to the log."""
    for line in stream:
        if line.startswith(PROGRESS_MARK):
            with contextlib.suppress(ValueError):
                on_progress(json.loads(line[len(PROGRESS_MARK) :]))
        elif line.startswith(FACTS_MARK):
            with contextlib.suppress(ValueError):
                _learn(facts, json.loads(line[len(FACTS_MARK) :]))
        else:
            # Where the disk is full, the pipe must still be read: else the worker would wait.
            with contextlib.suppress(OSError):
                log.write(line)
                log.flush()


def _learn(facts: dict[str, Any], new: dict[str, Any]) -> None:
    """Add what a worker told to what it told before."""
    for key in ("phase", "who"):
        if key in new:
            facts[key] = new[key]
    facts.setdefault("metrics", {}).update(new.get("metrics", {}))
    if "bytes" in new:
        facts["bytes"] = max(new["bytes"], facts.get("bytes", 0))


def _oom_kills() -> int:
    """How many processes the kernel has ended for lack of memory (0 if unknown).

    Counted in this process's own control group where there is one, else on the whole machine.
    """
    for path, key in (("/sys/fs/cgroup/memory.events", "oom_kill "), ("/proc/vmstat", "oom_kill ")):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        found = [int(line.split()[1]) for line in lines if line.startswith(key)]
        if found:
            return found[0]
    return 0


def _explain(code: int, kills_before: int, log: Path, who: str) -> tuple[str, str]:
    """Status and sentence for a worker that ended without a record."""
    # The counter is written by the kernel a moment after the process is gone.
    time.sleep(0.1)
    if code == -signal.SIGKILL and _oom_kills() > kills_before:
        told = f"The kernel ended {who[0].lower() + who[1:]} for lack of memory"
        left = memory_bytes()  # in use now that the worker is gone
        if left is None or left[0] <= left[1] / 2:
            return "oom", f"{told}."
        return "crashed", (
            f"{told}, but other processes hold {left[0] / 2**30:.2f} GiB of the machine's "
            f"{left[1] / 2**30:.2f} GiB; run it again when they have ended."
        )
    if code < 0:
        return "crashed", f"{who} was ended by signal {signal.Signals(-code).name}."
    return "crashed", f"{who} ended with exit code {code} and no record; see {log.name}."


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
        self, cells: list[Cell], command: str, deadline: float | None, report: Report, wait: bool
    ) -> Generator[Ended, None, None]:
        """Yield each cell as it ends; none is started after `deadline` (time.time()).

        One that another process runs is left out, unless it is to `wait` for it.
        """


class OneByOne:
    """The runner without workers."""

    width = 1

    def batch(self, cells: list[Cell]) -> list[Cell]:
        """The first."""
        return cells[:1]

    def run(
        self, cells: list[Cell], command: str, deadline: float | None, report: Report, wait: bool
    ) -> Generator[Ended, None, None]:
        """Run each in a process of its own."""
        for cell in cells:
            started = time.monotonic()
            report(cell, {"phase": "starting"})
            with contextlib.suppress(Busy):
                record = launch(cell, command, partial(report, cell), wait=wait)
                yield Ended(cell, record, time.monotonic() - started)
