"""launch.resume_from: what it refuses to continue, instead of starting afresh."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.cells import identity
from harness.cells.identity import Cell
from harness.cells.lock import locked
from harness.cells.store import CHECKPOINT_FILE
from harness.config import RunConfig
from harness.errors import UserError
from harness.meters.stability import LossWatch
from harness.study import planner
from harness.train import checkpoint
from harness.train.checkpoint import Progress
from harness.train.distributed.ranks import Ranks

MakeRun = Callable[..., RunConfig]


@dataclass(frozen=True)
class Other(Ranks):
    """A rank whose neighbour says `said`."""

    said: Any = None

    def gather(self, value: Any) -> list[Any]:
        return [value, self.said]


@pytest.fixture
def source(make_run: MakeRun) -> Cell:
    """An unfinished cell of one process, whose checkpoint is that of step 4."""
    (cell,) = planner.plan([make_run()], progress=False)
    cell.directory.mkdir(parents=True)
    (cell.directory / "job.json").write_text(json.dumps(identity.job(cell, 1, "")))
    checkpoint.save(setup_of(cell), Progress(step=4, energy_joules=5.0), LossWatch(8, 6.0, 8))
    return cell


@pytest.fixture
def continued(make_run: MakeRun, source: Cell) -> Cell:
    """A cell of two ranks that goes on from `source`."""
    halves = {"nproc": 2, "resume_from": str(source.directory)}
    (cell,) = planner.plan([make_run(micro_batch=2, launch=halves)], progress=False)
    cell.directory.mkdir(parents=True)
    return cell


def setup_of(cell: Cell, ranks: Ranks | None = None) -> Any:
    """As much of a Setup as checkpoints need."""
    model = torch.nn.Linear(1, 1)
    return SimpleNamespace(
        config=cell.config,
        job=identity.job(cell, 1, ""),
        directory=cell.directory,
        ranks=ranks or Ranks(),
        device=torch.device("cpu"),
        model=model,
        optimizer=torch.optim.SGD(model.parameters()),
    )


def load(cell: Cell, ranks: Ranks | None = None) -> Progress:
    return checkpoint.load(setup_of(cell, ranks), LossWatch(8, 6.0, 8))


def test_a_checkpoint_of_the_same_run_is_continued(continued: Cell) -> None:
    assert load(continued).resumed_at_step == 4
    assert load(continued, Other(said=4)).step == 4


def test_the_energy_of_earlier_ranks_counts_once(continued: Cell) -> None:
    """`source` took 5 J on one card; each rank adds its own, and the sum is recorded."""
    parts = [load(continued, Other(index, said=4)).energy_joules for index in range(2)]
    assert parts == [5.0, 0.0]


def test_without_a_checkpoint_nothing_starts_afresh(continued: Cell, source: Cell) -> None:
    (source.directory / CHECKPOINT_FILE).unlink()  # it has finished meanwhile
    with pytest.raises(UserError, match=f"{source.id} holds no checkpoint.pt any more"):
        load(continued)
    assert load(source).step == 0


def test_a_checkpoint_of_another_run_is_refused(continued: Cell, source: Cell) -> None:
    path = source.directory / CHECKPOINT_FILE
    state = torch.load(path, weights_only=False)
    torch.save(state | {"run": "another"}, path)
    with pytest.raises(UserError, match=r"checkpoint.pt of launch.resume_from=.* of another run"):
        load(continued)


@pytest.mark.parametrize("said", [None, 8])
def test_ranks_that_found_different_steps_do_not_train(continued: Cell, said: int | None) -> None:
    with pytest.raises(RuntimeError, match=rf"checkpoints of different steps: \[4, {said}\]"):
        load(continued, Other(said=said))


def test_a_running_cell_is_not_continued(make_run: MakeRun, source: Cell) -> None:
    config = make_run(micro_batch=2, launch={"nproc": 2, "resume_from": str(source.directory)})
    running = pytest.raises(UserError, match=f"{source.id} is running; stop it")
    with locked(source, lambda _: None, lambda: False), running:
        planner.plan([config], progress=False)
    assert planner.plan([config], progress=False)


def test_a_cell_with_a_checkpoint_of_its_own_asks_nothing_of_the_source(
    make_run: MakeRun, continued: Cell, source: Cell
) -> None:
    (source.directory / CHECKPOINT_FILE).rename(continued.directory / CHECKPOINT_FILE)
    launch = {"nproc": 2, "resume_from": str(source.directory)}
    (again,) = planner.plan([make_run(micro_batch=2, launch=launch)], progress=False)
    assert again.id == continued.id
    assert Path(again.directory / CHECKPOINT_FILE).exists()
