"""Cells spread over workers: nothing lost, nothing doubled, lost workers made good."""

import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from harness.cells import store
from harness.cells.code import CodeChanged
from harness.cells.identity import Cell
from harness.cells.lock import locked
from harness.cli import bench
from harness.config import RunConfig
from harness.config.groups import configs_dir
from harness.errors import UserError
from harness.launch import dispatch, dispatch_job, hydra_launchers, launcher
from harness.launch.dispatch import MAX_LOSSES, Dispatcher
from harness.launch.launcher import Ended
from harness.launch.slurm import Queue
from harness.study.planner import plan
from harness.study.study_file import write_study

MakeRun = Callable[..., RunConfig]


def note(cell: Cell, what: str) -> None:
    """Append a line to what happened, whole at once, from whichever process."""
    with (cell.study_dir / "happened").open("a") as stream:
        stream.write(f"{what} {cell.id}\n")


def happened(cell: Cell) -> Counter[str]:
    return Counter((cell.study_dir / "happened").read_text().splitlines())


def without_training(cell: Cell, task: dict[str, Any], *_: Any) -> store.Record:
    """In the place of the worker process: dies with its parent once where the cell is marked."""
    note(cell, "start")
    deadly = cell.directory / "deadly"
    if deadly.exists():
        deadly.unlink()
        os.kill(os.getpid(), 9)
    time.sleep(0.05)
    record = launcher.blank_record(task, "cpu")
    record.status = "done"
    store.write_curve(cell.directory, [(1, 1, 1.0, "train/loss", 1.0)])
    note(cell, "end")
    store.write_record(cell.directory, record)
    return record


def stub_job(_: Any) -> None:
    """The task function of real launchers, in whose processes nothing is trained."""
    from hydra.core.hydra_config import HydraConfig

    launcher._run = without_training  # type: ignore[assignment]
    dispatch_job.run_planned(Path(HydraConfig.get().runtime.output_dir), launcher.launch)


@pytest.fixture
def cells(make_run: MakeRun) -> Callable[[int], list[Cell]]:
    return lambda count: plan([make_run(seed=seed) for seed in range(count)], progress=False)


@pytest.fixture
def hydra_engine() -> Iterator[Any]:
    bench.register_schema()
    hydra_launchers.use_own_settings()
    with initialize_config_dir(str(configs_dir()), job_name="app", version_base="1.3"):
        yield GlobalHydra.instance().hydra


def run_all(dispatcher: Dispatcher, cells: list[Cell]) -> list[Ended]:
    return list(dispatcher.run(cells, "c", None, lambda cell, values: None, wait=True))


@pytest.mark.parametrize("name", ["joblib", "submitit_local"])
def test_a_killed_workers_cell_is_run_again_by_the_real_engines(
    name: str, cells: Callable[[int], list[Cell]], hydra_engine: Any
) -> None:
    plugin = f"hydra_plugins.hydra_{name.partition('_')[0]}_launcher"
    pytest.importorskip(plugin, reason="needs the extra `sweeps`")
    # The engines' processes cannot import a test module.
    pytest.importorskip("cloudpickle").register_pickle_by_value(sys.modules[__name__])
    planned = cells(3)
    for cell in planned:
        cell.directory.mkdir(parents=True)
    (planned[1].directory / "deadly").touch()
    engine = hydra_launchers.HydraEngine(hydra_engine, [f"hydra/launcher={name}"], stub_job)
    ended: list[Ended] = []
    dispatcher = Dispatcher(engine)
    while left := [c for c in planned if c.id not in {e.cell.id for e in ended}]:
        ended += run_all(dispatcher, dispatcher.batch(left))
    assert {e.record.status for e in ended} == {"done"}
    assert sorted(e.cell.id for e in ended) == sorted(cell.id for cell in planned)
    counts = happened(planned[0])
    assert counts[f"start {planned[1].id}"] == 2  # killed, then run again
    assert [counts[f"end {cell.id}"] for cell in planned] == [1] * 3


def finish_all(planned: list[Cell], number: int) -> None:
    """One of ten workers: every cell, from a place of its own, and the study's file."""
    launcher._run = without_training  # type: ignore[assignment]
    mine = planned[2 * number : 2 * number + 2]
    write_study(mine, f"worker {number}")
    for cell in planned[2 * number :] + planned[: 2 * number]:
        launcher.launch(cell, f"worker {number}", lambda values: None)


def test_ten_workers_at_once_lose_and_double_nothing(cells: Callable[[int], list[Cell]]) -> None:
    planned = cells(20)
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=finish_all, args=(planned, n)) for n in range(10)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 10
    expected = Counter({f"{what} {cell.id}": 1 for what in ("start", "end") for cell in planned})
    assert happened(planned[0]) == expected
    study, records = store.load_study(planned[0].study_dir)
    assert {cell["id"] for cell in study["cells"]} == {cell.id for cell in planned}
    assert [(r.status, r.attempt) for r in records] == [("done", 1)] * 20
    assert all(len(store.read_curve(cell.directory)) == 1 for cell in planned)
    assert not list(planned[0].study_dir.rglob("*.tmp"))


class Threads:
    """An engine whose workers are threads; `lose` says how many of a cell's workers are lost."""

    name, shares_machine, at_once, width = "hydra/launcher=threads", True, None, 2

    def __init__(self, lose: dict[str, int] | None = None, error: Exception | None = None) -> None:
        self.lose, self.error = lose or {}, error
        self.rounds: list[list[str]] = []
        self.seen_stop = False

    def queue(self, folder: Path) -> Queue | None:
        return None

    def launch(self, folder: Path, names: Sequence[str]) -> None:
        self.rounds.append(list(names))
        if self.error is not None:
            raise self.error
        threads = [
            threading.Thread(target=dispatch_job.run_planned, args=(folder / name, self.work))
            for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def work(self, cell: Cell, command: str, progress: Any, stopped: Any, *_: Any) -> store.Record:
        cell.directory.mkdir(parents=True, exist_ok=True)
        if self.lose.get(cell.id, 0) < 0:  # runs until it is told to stop
            while not stopped():
                time.sleep(0.01)
            self.seen_stop = True
            raise KeyboardInterrupt
        if self.lose.get(cell.id, 0):
            self.lose[cell.id] -= 1
            raise KeyboardInterrupt  # no outcome, as a worker that is gone
        return without_training(cell, launcher.job(cell, 1, command))


def test_a_cell_that_loses_every_worker_is_recorded_and_the_others_run(
    cells: Callable[[int], list[Cell]],
) -> None:
    planned = cells(3)
    engine = Threads({planned[0].id: MAX_LOSSES, planned[1].id: 1})
    ended = {e.cell.id: e.record for e in run_all(Dispatcher(engine), planned)}
    assert [ended[cell.id].status for cell in planned] == ["crashed", "done", "done"]
    assert "lost 3 times" in str(ended[planned[0].id].error)
    assert store.read_record(planned[0].directory).status == "crashed"
    assert engine.rounds[1:] == [[planned[0].id, planned[1].id], [planned[0].id]]
    assert len(happened(planned[1])) == 4


def test_a_lost_cell_that_another_command_runs_gets_that_ones_result(
    cells: Callable[[int], list[Cell]],
) -> None:
    (cell,) = cells(1)
    cell.directory.mkdir(parents=True)
    found: list[store.Record] = []

    def lose() -> None:
        found.append(launcher.record_loss(cell, "c", "It was lost.", lambda values: None))

    with locked(cell, lambda values: None, lambda: False):
        losing = threading.Thread(target=lose)
        losing.start()
        losing.join(0.3)
        assert losing.is_alive()
        assert not (cell.directory / store.RECORD_FILE).exists()
        without_training(cell, launcher.job(cell, 1, "c"))
    losing.join(10)
    assert [record.status for record in found] == ["done"]
    assert store.read_record(cell.directory).status == "done"


def test_a_job_leaves_a_cell_that_another_command_runs_for_later(
    cells: Callable[[int], list[Cell]], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, engine = cells(2), Threads()
    monkeypatch.setattr(launcher, "_run", without_training)
    engine.work = launcher.launch  # type: ignore[method-assign]
    planned[0].directory.mkdir(parents=True)
    with locked(planned[0], lambda values: None, lambda: False):
        ended = Dispatcher(engine).run(planned, "c", None, lambda c, v: None, wait=False)
        assert [found.cell.id for found in ended] == [planned[1].id]
    assert [e.record.status for e in run_all(Dispatcher(engine), planned)] == ["done"] * 2


def test_changed_code_stops_the_sweep_once_and_running_cells_end(
    cells: Callable[[int], list[Cell]],
) -> None:
    planned, engine = cells(4), Threads()
    usual = engine.work

    def work(cell: Cell, *rest: Any) -> store.Record:
        if cell.id in (planned[0].id, planned[1].id):
            raise CodeChanged("gefen/a.py changed")
        return usual(cell, *rest)

    engine.work = work  # type: ignore[method-assign]
    with pytest.raises(CodeChanged, match=r"^gefen/a\.py changed$"):
        run_all(Dispatcher(engine), planned)
    assert len(engine.rounds) == 1
    assert [store.has_record(cell.directory) for cell in planned] == [False, False, True, True]


def test_after_the_deadline_no_cell_starts(cells: Callable[[int], list[Cell]]) -> None:
    planned, engine = cells(2), Threads()
    found = list(Dispatcher(engine).run(planned, "c", time.time() - 1, lambda c, v: None, True))
    assert (found, len(engine.rounds)) == ([], 1)
    assert not (planned[0].study_dir / "happened").exists()


def test_an_engine_that_starts_nothing_is_one_sentence(
    cells: Callable[[int], list[Cell]],
) -> None:
    engine = Threads(error=FileNotFoundError("sbatch: not found"))
    with pytest.raises(UserError, match=r"could not start a cell: FileNotFoundError: sbatch"):
        run_all(Dispatcher(engine), cells(2))


def test_interrupted_it_ends_the_jobs_and_keeps_what_is_finished(
    cells: Callable[[int], list[Cell]],
) -> None:
    planned = cells(2)
    engine = Threads({planned[1].id: -1})
    running = Dispatcher(engine).run(planned, "c", None, lambda cell, values: None, True)
    assert next(running).cell.id == planned[0].id
    running.close()
    assert engine.seen_stop
    assert planned[0].finished() is not None
    assert planned[1].finished() is None
    assert not list((planned[0].study_dir / "dispatch").iterdir())


SQUEUE = """#!/bin/sh
cat "$SLURM_STATE"
"""
SCANCEL = """#!/bin/sh
echo "$@" >> "$SLURM_STATE.told"
grep -v PENDING "$SLURM_STATE" > "$SLURM_STATE.new"
mv "$SLURM_STATE.new" "$SLURM_STATE"
"""


class Slurm(Threads):
    """A cluster that starts all jobs but the last, and takes no notice of a stop file."""

    name = "hydra/launcher=submitit_slurm"

    def __init__(self, state: Path, lose: dict[str, int] | None = None) -> None:
        super().__init__(lose)
        self.state = state
        self.given_up = threading.Event()

    def queue(self, folder: Path) -> Queue:
        return Queue(folder / ".submitit")

    def launch(self, folder: Path, names: Sequence[str]) -> None:
        for number, _ in enumerate(names):
            job = folder / ".submitit" / f"77_{number}"
            job.mkdir(parents=True)
            (job / f"{job.name}_submitted.pkl").touch()
        self.state.write_text("RUNNING|None\nPENDING|Priority\n")
        super().launch(folder, names[:-1])
        self.state.write_text("")
        self.given_up.wait(60)  # as submitit waits for a job that was cancelled


@pytest.mark.parametrize("keep_running", [False, True])
def test_interrupted_it_cancels_the_jobs_that_wait_in_a_queue(
    cells: Callable[[int], list[Cell]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    keep_running: bool,
) -> None:
    for name, script in (("squeue", SQUEUE), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(dispatch, "QUEUE_SECONDS", 0.0)
    monkeypatch.setattr(dispatch, "QUEUE_POLL_SECONDS", 0.05)
    monkeypatch.setattr(dispatch, "STOP_SECONDS", 2.0)
    planned = cells(3)
    engine = Slurm(tmp_path / "state", {planned[1].id: -1})
    told: list[dict[str, Any]] = []
    runner = Dispatcher(engine, keep_running)
    running = runner.run(planned, "c", None, lambda cell, values: told.append(values), True)
    assert next(running).cell.id == planned[0].id
    assert {"queued": "jobs wait in the queue: Priority (1)"} in told
    running.close()
    assert engine.seen_stop is not keep_running
    asked = (tmp_path / "state.told").read_text().splitlines()
    assert asked == ["--state=PENDING 77", *([] if keep_running else ["77"])]
    (folder,) = (planned[0].study_dir / "dispatch").iterdir()  # what the jobs still read
    store.write_json_atomic(folder / "1" / dispatch_job.STOP_FILE, {"keep_running": False})
    engine.given_up.set()


def test_jobs_that_end_with_the_command_cannot_be_kept() -> None:
    with pytest.raises(UserError, match=r"--keep-running does not work with hydra/launcher=thr"):
        Dispatcher(Threads(), keep_running=True)


def test_engines_say_how_wide_they_are_and_what_they_need(
    hydra_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hydra_launchers, "_is_there", lambda module: True)
    monkeypatch.setattr(hydra_launchers.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(dispatch_job, "visible_devices", lambda: [])

    def engine(*arguments: str) -> hydra_launchers.HydraEngine:
        return hydra_launchers.HydraEngine(hydra_engine, arguments)

    def sizes(*arguments: str) -> tuple[int | None, int | None]:
        found = engine(*arguments)
        return found.at_once, found.width

    cores = "hydra.launcher.cpus_per_task=3"
    assert sizes("hydra/launcher=joblib", "hydra.launcher.n_jobs=5") == (None, 5)
    assert sizes("hydra/launcher=joblib", "hydra.launcher.n_jobs=-1") == (None, 8)
    assert sizes("hydra/launcher=submitit_local", cores) == (2, 2)
    assert sizes("hydra/launcher=submitit_slurm") == (None, 16)
    assert sizes("hydra/launcher=ray") == (None, None)
    queue = engine("hydra/launcher=submitit_slurm").queue(Path("/turn"))
    assert queue is not None
    assert queue._folder == Path("/turn/.submitit")
    assert engine("hydra/launcher=joblib").queue(Path("/turn")) is None
    assert engine("hydra/launcher=basic").is_basic
    monkeypatch.setattr(hydra_launchers, "_is_there", lambda module: False)
    for name, extra in (("joblib", "sweeps"), ("submitit_slurm", "sweeps"), ("ray", "ray")):
        wanted = rf"launcher={name} .*: pip install -e '.\[{extra}\]' -c constraints.txt"
        with pytest.raises(UserError, match=wanted):
            engine(f"hydra/launcher={name}")
