"""Three studies of planted faults, run once by `gefen-bench` itself; one is killed half-way."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from harness.cells import store
from harness.cells.identity import job_config
from harness.study.sweep import run_cell

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
LIMIT_SECONDS = 600.0

Seen = dict[str, tuple[int, bytes]]


@dataclass(frozen=True)
class Pipeline:
    """What the commands left, and what was on disk when one of them was killed.

    `kept` holds modification time (ns) and bytes of each record at that moment, `killed` names the
    cell that ran then, `reference` is the record of the same cell run elsewhere in one go.
    """

    loss: Path
    bytes: Path
    time: Path
    kept: Seen
    killed: str
    orphans: list[int]
    reference: store.Record
    resumed: str


def start(study: str, root: Path) -> "subprocess.Popen[str]":
    """`gefen-bench study=...` in a process of its own, as a person would start it."""
    command = [sys.executable, "-m", "harness.cli.bench", "--config-dir", str(HERE / "configs")]
    # Workers have the cores to themselves: a report or a plan in between must not take more.
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, f"study={study}", f"root={root}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    """Wait for a command that must succeed; what it told on standard error."""
    _, errors = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0, errors
    return errors


def records(study: Path) -> Seen:
    """Modification time and content of every record file, by cell."""
    found = study.glob(f"cells/*/{store.RECORD_FILE}")
    return {path.parent.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def kill_in_training(process: "subprocess.Popen[str]", study: Path, after: int) -> str:
    """SIGKILL the command while a cell trains that has saved a checkpoint; returns the cell.

    `after` is how many cells must have their record by then.
    """
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr and process.stderr.read()
        if len(list(study.glob(f"cells/*/{store.RECORD_FILE}"))) >= after:
            saved = {path.parent for path in study.glob("cells/*/checkpoint.pt")}
            training = [cell for cell in saved if not store.has_record(cell)]
            if training:
                process.kill()
                process.communicate()
                return training[0].name
        time.sleep(0.005)


def survivors(study: Path) -> list[int]:
    """Processes that still work on a cell of `study` five seconds after its runner was killed."""
    found: list[int] = []
    for _ in range(50):
        found = [p.pid for p in psutil.process_iter(["cmdline"]) if works_on(p, study)]
        if not found:
            break
        time.sleep(0.1)
    return found


def works_on(process: psutil.Process, study: Path) -> bool:
    return any(str(study) in word for word in process.info["cmdline"] or ())


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The study of times on one core, the two others one after the other on a second.

    The study of losses is killed and started again.
    """
    root = tmp_path_factory.mktemp("planted")
    loss = root / "planted_loss"
    started = [start("planted_time", root), start("planted_loss", root)]
    try:
        killed = kill_in_training(started[1], loss, after=2)
        kept, orphans = records(loss), survivors(loss)
        started.append(start("planted_loss", root))
        resumed = finish(started[2])
        started.append(start("planted_bytes", root))
        finish(started[3])
        job = store.read_json(store.cell_dir(loss, killed) / "job.json")
        elsewhere = replace(job_config(job), root=str(root / "elsewhere"))
        reference = run_cell(elsewhere, progress=False)
        finish(started[0])
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()
    times, sizes = root / "planted_time", root / "planted_bytes"
    return Pipeline(loss, sizes, times, kept, killed, orphans, reference, resumed)
