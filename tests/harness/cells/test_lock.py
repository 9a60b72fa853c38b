"""The locks of cells and studies: the kernel's, or one sentence."""

import errno
import fcntl
import os
import pwd
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import Timeout

from harness.cells import identity
from harness.cells.lock import holding, is_locked
from harness.config import RunConfig
from harness.errors import UserError
from harness.launch import dispatch_job
from harness.optimizers.wheels import packages
from harness.study.planner import plan
from harness.study.study_file import write_study

MakeRun = Callable[..., RunConfig]


def test_a_lock_is_the_kernels_and_ends_with_its_process(tmp_path: Path) -> None:
    """Held by a lock that flock(2) took elsewhere, and by a process that is killed."""
    (tmp_path / "lock").touch()
    with (tmp_path / "lock").open("r+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert is_locked(tmp_path)
        with pytest.raises(Timeout), holding(tmp_path / "lock", wait=False):
            pass
    assert not is_locked(tmp_path)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with holding(tmp_path / "lock"):
            os.write(write, b"x")
            time.sleep(60)
    assert os.read(read, 1) == b"x"
    assert is_locked(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
    with holding(tmp_path / "lock", wait=False):
        assert is_locked(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_sentence(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (cell,) = plan([make_run()], progress=False)

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"/test is on a file system without file locks \(.*\);"):
        write_study([cell], "c")


def test_no_home_is_one_sentence(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "GEFEN_BENCH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for find in (lambda: identity.cache_dir(make_run(cache=None)), packages.root):
        with pytest.raises(UserError, match=r"no home folder .* set GEFEN_BENCH_CACHE, or give"):
            find()
    monkeypatch.setenv("GEFEN_BENCH_CACHE", "/elsewhere")
    assert packages.root() == Path("/elsewhere/published")


@pytest.mark.parametrize(
    ("named", "seen"), [("", []), ("-1", []), ("2, 5", ["2", "5"]), ("1,-1,2", ["1"])]
)
def test_hidden_devices_are_honoured_and_named(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, named: str, seen: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert dispatch_job.visible_devices() == seen
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"\(CUDA_VISIBLE_DEVICES='{named}' is set\)"):
        plan([make_run(device="cuda")], progress=False)
