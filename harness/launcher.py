"""The parent's side of a cell: one fresh process, watched until it ends in a recorded status."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from harness import store
from harness.cells import Cell, blank_record, job
from harness.errors import UserError
from harness.provenance import utc_now

PROGRESS_MARK = "@progress "
FACTS_MARK = "@facts "
OnProgress = Callable[[dict[str, Any]], None]


def launch(cell: Cell, command: str, on_progress: OnProgress) -> store.Record:
    """Run `cell` in a fresh process and return its record, which is on disk by then.

    Another process that runs the same cell is waited for, and its result is taken.
    KeyboardInterrupt ends the worker, leaves an `interrupted` record and is raised again.
    """
    cell.directory.mkdir(parents=True, exist_ok=True)
    with _locked(cell.directory / "lock", on_progress):
        finished = cell.finished()
        if finished is not None:
            return finished
        task = job(cell, _next_attempt(cell.directory), command)
        store.write_json_atomic(cell.directory / "job.json", task)
        return _run(cell, task, on_progress)


@contextlib.contextmanager
def _locked(path: Path, on_progress: OnProgress) -> Iterator[None]:
    """Hold the cell's lock; the kernel frees it when this process dies, however it dies."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_progress({"phase": "waiting for another process that runs this cell"})
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _next_attempt(directory: Path) -> int:
    try:
        return int(json.loads((directory / "job.json").read_text())["attempt"]) + 1
    except (FileNotFoundError, ValueError, KeyError):
        return 1


def _run(cell: Cell, task: dict[str, Any], on_progress: OnProgress) -> store.Record:
    kills, parent = _oom_kills(), str(os.getpid())
    failure_record = blank_record(task, cell.config.device)
    facts: dict[str, Any] = {}
    with (cell.directory / "log.txt").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.worker", str(cell.directory.resolve()), parent],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=_environment(cell),
            # Ctrl-C in the terminal reaches this process alone, which then ends the worker.
            start_new_session=True,
        )
        assert process.stdout is not None
        reader = threading.Thread(
            target=_relay, args=(process.stdout, log, on_progress, facts), daemon=True
        )
        reader.start()
        failure = None
        try:
            process.wait(timeout=cell.config.launch.timeout_seconds)
        except subprocess.TimeoutExpired:
            _kill(process)
            limit = cell.config.launch.timeout_seconds
            failure = ("timeout", f"Stopped after launch.timeout_seconds={limit:g}.")
        except KeyboardInterrupt:
            _kill(process)
            if _written(cell, task) is None:
                _failed(cell, failure_record, "interrupted", "Interrupted by the user.", facts)
            raise
        reader.join(timeout=10)
    # A worker that was ended while it closed its dashboard has its result on disk already.
    record = _written(cell, task)
    if record is not None:
        return record
    status, error = failure or _explain(process.returncode, kills, cell.directory / "log.txt")
    return _failed(cell, failure_record, status, error, facts)


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
            log.write(line)
            log.flush()


def _learn(facts: dict[str, Any], new: dict[str, Any]) -> None:
    """Add what a worker told to what it told before."""
    facts["phase"] = new["phase"]
    facts.setdefault("metrics", {}).update(new.get("metrics", {}))
    if "bytes" in new:
        facts["bytes"] = max(new["bytes"], facts.get("bytes", 0))


def _kill(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(cell: Cell) -> dict[str, str]:
    environment = dict(os.environ)
    environment["TOKENIZERS_PARALLELISM"] = "false"
    environment["PYTHONUNBUFFERED"] = "1"
    # cuBLAS is deterministic only with a fixed workspace.
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if cell.config.model.path is None and cell.config.data.source != "hub":
        environment["HF_HUB_OFFLINE"] = "1"
    if cell.config.threads is not None:
        environment["OMP_NUM_THREADS"] = str(cell.config.threads)
    # The worker must find this very code, also when started from another folder.
    here = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(
        path for path in (here, environment.get("PYTHONPATH")) if path
    )
    return environment


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


def _explain(code: int, kills_before: int, log: Path) -> tuple[str, str]:
    """Status and sentence for a worker that ended without a record."""
    # The counter is written by the kernel a moment after the process is gone.
    time.sleep(0.1)
    if code == -signal.SIGKILL and _oom_kills() > kills_before:
        return "oom", "The kernel ended the worker for lack of memory."
    if code < 0:
        return "crashed", f"The worker was ended by signal {signal.Signals(-code).name}."
    return "crashed", f"The worker ended with exit code {code} and no record; see {log.name}."
