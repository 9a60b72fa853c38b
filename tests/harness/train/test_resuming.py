"""Checkpoints: which are continued, which are refused, and what becomes of one that fails."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness import optimizers
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
from harness.train.facts import Facts

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
    taken = {"energy_joules": 5.0, "energy_method": "counter"}
    checkpoint.save(setup_of(cell), Progress(step=4, metered=taken), LossWatch(8, 6.0, 8))
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
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    optimizer = optimizers.build_optimizer(model, cell.config.optimizer)
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    return SimpleNamespace(
        config=cell.config,
        job=identity.job(cell, 1, ""),
        directory=cell.directory,
        ranks=ranks or Ranks(),
        device=torch.device("cpu"),
        model=model,
        optimizer=optimizer,
        facts=Facts(lambda told: None),
        report=lambda **told: None,
    )


def load(cell: Cell, ranks: Ranks | None = None) -> Progress:
    return checkpoint.load(setup_of(cell, ranks), LossWatch(8, 6.0, 8))


def test_a_checkpoint_of_the_same_run_is_continued(continued: Cell) -> None:
    assert load(continued).resumed_at_step == 4
    assert load(continued, Other(said=4)).step == 4


def test_the_energy_of_earlier_ranks_counts_once(continued: Cell) -> None:
    """`source` took 5 J on one card; each rank adds its own, and the sum is recorded."""
    parts = [load(continued, Other(index, said=4)).metered for index in range(2)]
    assert [part["energy_joules"] for part in parts] == [5.0, 0.0]
    assert {part["energy_method"] for part in parts} == {"counter"}


def test_without_a_checkpoint_nothing_starts_afresh(continued: Cell, source: Cell) -> None:
    (source.directory / CHECKPOINT_FILE).unlink()  # it has finished meanwhile
    with pytest.raises(UserError, match=f"{source.id} holds no checkpoint.pt any more"):
        load(continued)
    assert load(source).step == 0


def test_a_checkpoint_of_another_run_is_refused(continued: Cell, source: Cell) -> None:
    path = source.directory / CHECKPOINT_FILE
    state = torch.load(path, weights_only=True)
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


class Planted:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def planted(path: Path, mark: Path, place: str, zipped: bool) -> None:
    """A checkpoint of this run with such an object in it, in either format of torch."""
    state = torch.load(path, weights_only=True)
    if place == "optimizer":
        state["optimizer"]["state"][0]["projector"] = Planted(mark)
    else:
        state[place] = Planted(mark)
    torch.save(state, path, _use_new_zipfile_serialization=zipped)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["progress", "optimizer", "more"])
def test_a_checkpoint_that_would_run_code_is_refused(
    continued: Cell, source: Cell, tmp_path: Path, place: str, zipped: bool
) -> None:
    path, mark = source.directory / CHECKPOINT_FILE, tmp_path / "ran"
    planted(path, mark, place, zipped)
    told = r"holds an object \(\S+\) that no checkpoint of this run has; it was not read"
    if not zipped:  # `save` writes the other format
        told = "is damaged, or no checkpoint; it was not read"
    for cell in (source, continued):  # one of its own, and that of launch.resume_from
        with pytest.raises(UserError, match=told):
            load(cell)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # as it was read before
    assert mark.exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 no archive", None])
def test_what_is_no_checkpoint_is_refused_in_one_sentence(
    source: Cell, content: bytes | None
) -> None:
    path = source.directory / CHECKPOINT_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match="is damaged, or no checkpoint; it was not read") as told:
        load(source)
    assert "\n" not in str(told.value)
    torch.save({"model": {}}, path)
    with pytest.raises(UserError, match="is no checkpoint of a cell"):
        load(source)


def test_the_projector_of_galore_is_read(make_run: MakeRun) -> None:
    (cell,) = planner.plan([make_run("galore")], progress=False)
    cell.directory.mkdir(parents=True)
    setup = setup_of(cell)
    # The weights of hidden matrices are projected; this is one by its name.
    projectors = [s for s in setup.optimizer.state.values() if "projector" in s]
    checkpoint.save(setup, Progress(step=2, rows=[(1, 2, 0.5, "train/loss", 3.0)]), watch())
    again = setup_of(cell)
    found = checkpoint.load(again, watch())
    assert found == Progress(step=2, rows=[(1, 2, 0.5, "train/loss", 3.0)], resumed_at_step=2)
    restored = [s for s in again.optimizer.state.values() if "projector" in s]
    assert len(restored) == len(projectors) == 1
    torch.testing.assert_close(
        restored[0]["projector"].ortho_matrix, projectors[0]["projector"].ortho_matrix
    )


def watch() -> LossWatch:
    return LossWatch(8, 6.0, 8)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_checkpoint_that_cannot_be_written_leaves_training_running(
    source: Cell, capsys: pytest.CaptureFixture[str]
) -> None:
    import resource

    path, setup = source.directory / CHECKPOINT_FILE, setup_of(source)
    before, told = path.read_bytes(), []
    setup.report = lambda **values: told.append(values)
    (source.directory / "checkpoint.1.tmp").write_text("of a worker that was killed")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))  # as a full disk: EFBIG
    try:
        checkpoint.save(setup, Progress(step=8), watch())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.glob("checkpoint.*")] == [CHECKPOINT_FILE]
    sentence = setup.facts.metrics["checkpoint_error"]
    assert sentence.startswith(f"The checkpoint of step 8 was not written to {source.directory} (")
    assert "File too large" in sentence
    assert told == [{"warning": sentence}]
    assert capsys.readouterr().err == sentence + "\n"
    checkpoint.save(setup, Progress(step=9), watch())
    assert load(source).step == 9


def test_other_errors_of_a_checkpoint_are_no_full_disk(
    source: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA error")))
    with pytest.raises(RuntimeError, match="CUDA error"):
        checkpoint.save(setup_of(source), Progress(step=8), watch())
    assert [file.name for file in source.directory.glob("checkpoint.*")] == [CHECKPOINT_FILE]
