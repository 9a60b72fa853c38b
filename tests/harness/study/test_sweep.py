"""Sweeps over plans with a stand-in for the worker: searches, resuming, limits, estimates."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cells import store
from harness.cells.code import CodeChanged
from harness.cells.identity import Cell, job
from harness.cells.lock import locked
from harness.config import RunConfig, to_dict
from harness.errors import UserError
from harness.launch import launcher
from harness.study import sweep
from harness.study.plan import Plan, Request
from harness.study.search import Fixed, Largest, Point, Rates, Search
from harness.train.facts import Facts
from harness.worker import main as worker_main

MakeRun = Callable[..., RunConfig]
STATUSES = {True: "done", False: "oom"}


class Worker:
    """In the place of `launch`: micro-batches above `capacity` run out of memory."""

    def __init__(self, capacity: int = 3, killed_at: int | None = None) -> None:
        self.capacity, self.killed_at = capacity, killed_at
        self.ran: list[str] = []

    def __call__(self, cell: Cell, command: str, on_progress: Any, wait: bool) -> store.Record:
        if len(self.ran) == self.killed_at:
            raise KeyboardInterrupt
        self.ran.append(cell.id)
        config = to_dict(cell.config)
        loss = abs(cell.config.optimizer.lr / 1e-3 - 1)
        record = store.Record(
            id=cell.id,
            study=cell.config.study.name,
            part=cell.config.part,
            label=cell.label,
            status=STATUSES[cell.config.micro_batch <= self.capacity],
            config={k: v for k, v in config.items() if k not in ("study", "launch", "root")},
            provenance={
                "code_hash": cell.origin.code["core"],
                "data_hash": cell.origin.data,
                "device": "cpu",
                "started_utc": "2026-01-01T00:00:00+00:00",
                "finished_utc": "2026-01-01T00:01:40+00:00",
            },
            metrics={
                "eval_split": "validation",
                "final_eval_loss": loss,
                "parameters": 1000,
                "startup_seconds": 10.0,
                "step_median_seconds": 0.5,
            },
        )
        store.write_record(cell.directory, record)
        return record


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Worker]:
    """Puts a stand-in worker in place and returns it; published records are out of sight."""

    def put(**keys: Any) -> Worker:
        worker = Worker(**keys)
        monkeypatch.setattr(launcher, "launch", worker)
        monkeypatch.setattr(sweep, "_results_dir", lambda: Path("/nowhere"))
        return worker

    return put


@pytest.fixture
def plan(make_run: MakeRun) -> Callable[..., Plan]:
    """A plan of a search over a tiny configuration."""
    base = make_run()

    def configure(point: Point) -> RunConfig:
        rate = point.get("optimizer.lr", 1e-3) * point.get("optimizer.lr_factor", 1)
        optimizer = dataclasses.replace(base.optimizer, lr=rate)
        seed = point.get("seed", 0)
        return dataclasses.replace(
            base,
            optimizer=optimizer,
            micro_batch=point.get("micro_batch", 1),
            seed=seed,
            study=dataclasses.replace(base.study, parts={"p": {}}),
        )

    return lambda search, *rerun: Plan([Request(search, configure)], progress=False, rerun=rerun)


LARGEST = Largest([{"part": "p", "optimizer": "adamw"}], "micro_batch", range(1, 65))
SEEDS = Fixed([{"part": "p", "seed": seed} for seed in range(4)])
RATES = Rates(
    [{"part": "p", "optimizer": "adamw", "optimizer.lr_factor": f} for f in (2, 4)], max_trials=20
)


def run(plan: Plan, **limits: Any) -> sweep.Outcome:
    return sweep.Sweep(plan, "c", sweep.Limits(**limits)).run()


def listed(root: Path) -> list[str]:
    return [cell["id"] for cell in store.read_study(root / "runs" / "test")["cells"]]


def test_a_search_runs_to_its_end_and_every_probe_is_a_cell(
    work: Callable[..., Worker], plan: Callable[[Search], Plan], tmp_path: Path
) -> None:
    worker = work(capacity=3)
    outcome = run(plan(LARGEST))
    assert outcome.counts == {"done": 3, "oom": 1}  # 1, 2, then 4 fails, then 3
    assert outcome.stopped is None
    _, records = store.load_study(tmp_path / "runs" / "test")
    assert [r.config["micro_batch"] for r in records] == [1, 2, 4, 3]
    assert [r.id for r in records] == listed(tmp_path) == worker.ran
    known = plan(LARGEST).known()
    assert (known.open, known.notes) == (False, ["p adamw: micro_batch=3 fits, 4 does not."])


@pytest.mark.parametrize("search", [LARGEST, RATES, SEEDS])
def test_killed_anywhere_a_study_goes_on_and_runs_nothing_twice(
    search: Search, work: Callable[..., Worker], plan: Callable[[Search], Plan], tmp_path: Path
) -> None:
    ran: list[str] = []
    commands, finished = 0, None
    while finished is None:
        worker = work(killed_at=1)
        commands += 1
        with contextlib.suppress(KeyboardInterrupt):
            finished = run(plan(search))
        ran += worker.ran
        assert set(ran) <= set(listed(tmp_path))  # study.json never forgets a finished cell
    assert commands == len(ran)  # one cell each, the last command ends by itself
    assert len(set(ran)) == len(ran) == sum(finished.counts.values())
    assert sorted(listed(tmp_path)) == sorted(ran)


def test_the_rates_search_ends_at_the_known_minimum(
    work: Callable[..., Worker], plan: Callable[[Search], Plan], tmp_path: Path
) -> None:
    """Loss is least at 0.001, below the starting grid of 0.002 and 0.004."""
    work()
    run(plan(RATES))
    _, records = store.load_study(tmp_path / "runs" / "test")
    tried = sorted(record.config["optimizer"]["lr"] for record in records)
    assert tried == [0.0005, 0.000707, 0.001, 0.00141, 0.002, 0.004]


def test_looks_are_only_ever_added_and_dropped_cells_are_told(
    work: Callable[..., Worker], plan: Callable[[Search], Plan], tmp_path: Path
) -> None:
    """Replacing the seed list after its results were seen leaves a trace."""
    worker, folder = work(), tmp_path / "runs" / "test"
    run(plan(SEEDS), cells=2)
    first = store.read_study(folder)
    planned = listed(tmp_path)
    assert [look["cells"] for look in first["looks"]] == [planned]
    assert first["looks"][0]["utc"] == first["created_utc"]
    run(plan(SEEDS))  # the rest of the same plan
    assert store.read_study(folder)["looks"] == first["looks"]
    assert store.read_study(folder)["unlisted_cells"] == []
    old = {key: first[key] for key in first if key not in ("looks", "unlisted_cells")}
    old["created_utc"] = "2026-01-01T00:00:00+00:00"  # a file from before looks were kept
    store.write_study(folder, old)

    run(plan(Fixed([{"part": "p", "seed": seed} for seed in (3, 7, 8)])))
    last = store.read_study(folder)
    assert last["created_utc"] == old["created_utc"]
    assert [look["cells"] for look in last["looks"]] == [planned, listed(tmp_path)]
    assert last["looks"][0]["utc"] == old["created_utc"]
    assert last["unlisted_cells"] == sorted(planned[:3])
    assert set(worker.ran) == {*planned, *listed(tmp_path)}


def test_the_probes_of_one_search_are_one_look(
    work: Callable[..., Worker], plan: Callable[[Search], Plan], tmp_path: Path
) -> None:
    work(capacity=3)
    run(plan(LARGEST))
    (look,) = store.read_study(tmp_path / "runs" / "test")["looks"]
    assert look["cells"] == listed(tmp_path)
    assert len(look["cells"]) == 4


def test_a_limit_stops_between_cells_and_kept_cells_do_not_count(
    work: Callable[..., Worker],
    plan: Callable[[Search], Plan],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    worker = work()
    first = run(plan(SEEDS), cells=3)
    assert (len(worker.ran), first.left, first.stopped) == (3, 1, "the limit of 3 cells")
    assert len(listed(tmp_path)) == 4
    second = run(plan(SEEDS), cells=3)
    assert (len(worker.ran), second.left, second.stopped) == (4, 0, None)
    assert second.counts == {"done": 4}
    assert capsys.readouterr().err.count("(kept)") == 3


def test_a_time_budget_starts_no_further_cell(
    work: Callable[..., Worker],
    plan: Callable[[Search], Plan],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = work()
    # Every cell takes ten seconds of the clock that the sweep reads.
    monkeypatch.setattr(sweep.time, "monotonic", lambda: 10.0 * len(worker.ran))
    outcome = run(plan(SEEDS), seconds=15)
    assert (len(worker.ran), outcome.left) == (2, 2)
    assert outcome.stopped == "the time budget of 15 s"


def test_results_run_again_where_asked_by_status_or_id(
    work: Callable[..., Worker], plan: Callable[..., Plan], tmp_path: Path
) -> None:
    work(capacity=3)
    run(plan(LARGEST))  # 1, 2 and 3 are done, 4 is not
    larger = work(capacity=5)
    assert run(plan(LARGEST)).counts == {"done": 3, "oom": 1}
    assert larger.ran == []
    text = sweep.dry_run(plan(LARGEST, "oom").known())
    assert "4 to run" not in text
    assert "1 to run" in text
    assert run(plan(LARGEST, "oom")).counts == {"done": 4, "oom": 2}  # now 8 and 6 fail, 5 fits
    records = store.load_study(tmp_path / "runs" / "test")[1]
    by_id = {record.id: record.config["micro_batch"] for record in records}
    assert [by_id[name] for name in larger.ran] == [4, 8, 6, 5]
    again = work(capacity=5)
    asked = [larger.ran[0], larger.ran[2]]
    assert run(plan(LARGEST, *asked)).counts == {"done": 4, "oom": 2}
    assert again.ran == asked
    with pytest.raises(UserError, match=r"^--rerun omm is not known; allowed: done, .*, or the id"):
        plan(LARGEST, "omm")
    with pytest.raises(UserError, match=r"^--rerun 0{16} is no cell of this plan; --dry-run lists"):
        plan(SEEDS, "0" * 16)


def test_a_cell_that_another_command_runs_comes_last(
    work: Callable[..., Worker],
    plan: Callable[[Search], Plan],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker, cells = work(), plan(SEEDS).known().cells
    waits: list[bool] = []
    with contextlib.ExitStack() as other:

        def launch(cell: Cell, command: str, on_progress: Any, wait: bool) -> store.Record:
            waits.append(wait)
            if wait:
                other.close()  # the other command's process ends, without a result
            return worker(cell, command, on_progress, wait)

        monkeypatch.setattr(launcher, "launch", launch)
        for cell in cells[:2]:
            cell.directory.mkdir(parents=True)
            other.enter_context(locked(cell, print, lambda: False))
        assert run(plan(SEEDS)).counts == {"done": 4}
    assert worker.ran == [cells[n].id for n in (2, 3, 0, 1)]
    assert waits == [False, False, True, False]


def test_a_result_stays_until_its_cell_runs_again(
    work: Callable[..., Worker], plan: Callable[..., Plan], tmp_path: Path
) -> None:
    work()
    run(plan(SEEDS))
    work(killed_at=1)
    with pytest.raises(KeyboardInterrupt):
        run(plan(SEEDS, "done"))
    assert len(store.load_study(tmp_path / "runs" / "test")[1]) == 3  # the second was about to run
    work()
    assert run(plan(SEEDS)).counts == {"done": 4}


def test_an_edit_in_between_stops_the_sweep_once_and_loses_nothing(
    work: Callable[..., Worker],
    plan: Callable[[Search], Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = work()

    class Edited(Worker):
        def __call__(self, cell: Cell, command: str, on_progress: Any, wait: bool) -> store.Record:
            if len(worker.ran) == 2:
                raise CodeChanged("harness/a.py changed")
            return worker(cell, command, on_progress, wait)

    monkeypatch.setattr(launcher, "launch", Edited())
    with pytest.raises(CodeChanged, match=r"a\.py changed"):
        run(plan(SEEDS))
    assert len(listed(tmp_path)) == 4
    _, records = store.load_study(tmp_path / "runs" / "test")
    assert [record.status for record in records] == ["done", "done"]
    work()
    assert run(plan(SEEDS)).counts == {"done": 4}


def test_a_cell_of_other_code_is_not_started_and_its_worker_refuses_it(
    plan: Callable[[Search], Plan], tmp_path: Path
) -> None:
    cell = plan(SEEDS).known().cells[0]
    assert "harness/train/loop.py" in cell.origin.files
    other = dataclasses.replace(cell.origin, files={"harness/train/loop.py": "0:0"})
    other_cell = dataclasses.replace(cell, origin=other)
    with pytest.raises(CodeChanged, match=r"harness/train/loop\.py changed after the runs were"):
        launcher.launch(other_cell, "c", print)
    assert not store.has_record(cell.directory)
    assert not (cell.directory / "job.json").exists()
    task = job(other_cell, 1, "c")
    with pytest.raises(CodeChanged, match="loop"):
        worker_main._run_task(cell.config, task, tmp_path, None, Facts(print))


def test_estimates_come_from_what_ran_and_are_told(
    work: Callable[..., Worker],
    plan: Callable[[Search], Plan],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work()
    text = sweep.dry_run(plan(SEEDS).known())
    assert text.endswith(
        "4 cells, 4 to run: no estimate of time and disk (no finished record compares)."
    )
    assert not (tmp_path / "runs").exists()
    run(plan(SEEDS), cells=1)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("[1/4, 0 s so far, about 5 min left] main: gpt2_tiny/adamw/32/fp32/")
    run(plan(SEEDS), cells=1)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("4 cells, 3 to run: about 5 min and ")  # three times 100 s
    *lines, summary = sweep.dry_run(plan(SEEDS).known()).splitlines()
    assert [line.split()[1] for line in lines] == ["done", "done", "to", "to"]
    assert lines[2].split()[3:5] == ["~2", "min"]
    assert summary.startswith("4 cells, 2 to run: about 3 min and ")
    open_plan = sweep.dry_run(plan(LARGEST).known())
    assert open_plan.endswith("; the search adds cells as it learns, at most 13 in all.")


def test_a_part_that_is_wrong_stops_the_plan_before_anything_runs(
    plan: Callable[[Search], Plan], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="micro_batch=0 is too small"):
        plan(Fixed([{"part": "p", "micro_batch": 1}, {"part": "p", "micro_batch": 0}]))
    assert not (tmp_path / "runs").exists()
