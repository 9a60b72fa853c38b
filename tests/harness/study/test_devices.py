"""Which device a cell runs on: named for other machines, shared out among the jobs of this one."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cells import store
from harness.config import RunConfig
from harness.errors import UserError
from harness.launch import dispatch_job
from harness.study.planner import Planner
from harness.train.distributed.ranks import accelerator_of

MakeRun = Callable[..., RunConfig]


class Engine:
    """As much of an engine as planning asks for."""

    name = "hydra/launcher=some"

    def __init__(self, shares_machine: bool) -> None:
        self.shares_machine = shares_machine


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two devices, and a folder of locks that no other program sees."""
    monkeypatch.setattr(dispatch_job.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(dispatch_job, "DEVICE_POLL_SECONDS", 0.01)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")


def test_cells_of_other_machines_need_their_device_named(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this machine has decides nothing; the worker then finds out whether a GPU is there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    planner = Planner(False, Engine(shares_machine=False))
    with pytest.raises(UserError, match=r"device=auto cannot .* device=cuda or device=cpu"):
        planner.cells([make_run(device="auto")])
    (cell,) = planner.cells([make_run(device="cuda")])
    assert cell.config.device == "cuda"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="torch sees no CUDA device on"):
        accelerator_of(cell.config)


def test_several_ranks_on_gpus_are_refused_where_each_job_gets_one(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ranks = {"launch": {"nproc": 2}}
    planner = Planner(False, Engine(shares_machine=True))
    with pytest.raises(UserError, match=r"launch.nproc=2 on GPUs does not work with hydra/launch"):
        planner.cells([make_run(device="auto", **ranks)])
    assert planner.cells([make_run(**ranks), make_run(device="cuda")])
    assert Planner(False).cells([make_run(device="cuda", **ranks)])


@pytest.mark.usefixtures("slots")
def test_a_job_waits_until_a_device_is_free() -> None:
    devices = dispatch_job.visible_devices()
    seen: list[str | None] = []

    def job() -> None:
        with dispatch_job._free(devices, lambda: False) as device:
            seen.append(device)

    with dispatch_job._own_device(devices, lambda: False):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
        with dispatch_job._free(devices, lambda: False) as second:
            assert second == "5"
            third = threading.Thread(target=job)
            third.start()
            third.join(0.2)
            assert (third.is_alive(), seen) == (True, [])
        third.join(10)
        assert seen == ["5"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


@pytest.mark.usefixtures("slots")
def test_a_job_that_waits_for_a_device_can_be_stopped_and_starts_nothing_too_late(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (cell,) = Planner(False).cells([make_run(device="cuda")])
    soon = time.time() + 0.2
    dispatch_job.write_plan(tmp_path / "turn" / "late", cell, "c", soon, ["3"])
    dispatch_job.write_plan(tmp_path / "turn" / "stopped", cell, "c", None, ["3"])

    def fail(*_: Any) -> store.Record:
        raise AssertionError("started without a device")

    def started(name: str) -> threading.Thread:
        job = threading.Thread(
            target=dispatch_job.run_planned, args=(tmp_path / "turn" / name, fail)
        )
        job.start()
        return job

    with dispatch_job._own_device(["3"], lambda: False):
        late, stopped = started("late"), started("stopped")
        late.join(10)
        stopped.join(0.2)
        assert stopped.is_alive()
        (tmp_path / "turn" / dispatch_job.STOP_FILE).touch()
        stopped.join(10)
        assert not late.is_alive()
        assert not stopped.is_alive()
    assert store.read_json(tmp_path / "turn/late" / dispatch_job.OUTCOME_FILE) == {"skipped": True}
    # A job that only waited counts as none that a worker has lost.
    assert [p.name for p in (tmp_path / "turn/stopped").iterdir()] == [dispatch_job.PLAN_FILE]
