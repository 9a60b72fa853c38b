"""Out of memory is a result where the memory was the run's own, and a crash where it was not."""

import dataclasses
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from harness.cells import provenance
from harness.config import RunConfig
from harness.launch import launcher
from harness.worker import failure
from harness.worker.failure import Use, asked_bytes, others_to_blame, status_of

MakeRun = Callable[..., RunConfig]
GIB = 2**30


def refused(allocate: Callable[[], object]) -> BaseException:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocate()
    return raised.value


def test_what_libraries_asked_for_is_read_from_their_words() -> None:
    error = refused(lambda: torch.empty(2**46, dtype=torch.uint8))
    assert asked_bytes(error) == 2**46
    assert asked_bytes(refused(lambda: np.empty(2**48, np.uint8))) == 2**48
    words = "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of 79.10"
    assert asked_bytes(RuntimeError(words)) == 20.5 * GIB
    assert asked_bytes(MemoryError()) == 0


@pytest.mark.parametrize(
    ("use", "asked", "device", "others"),
    [
        (Use(70 * GIB, GIB // 2, 80 * GIB), 20 * GIB, "cuda", False),  # alone, but for the context
        (Use(30 * GIB, 40 * GIB, 80 * GIB), 20 * GIB, "cuda", True),
        (Use(30 * GIB, 40 * GIB, 80 * GIB), 60 * GIB, "cuda", False),  # too much for any card
        (Use(30 * GIB, 40 * GIB, 32 * GIB), 1 * GIB, "cuda", True),  # within its cap
        (Use(30 * GIB, 40 * GIB, 32 * GIB), 4 * GIB, "cuda", False),  # beyond its cap
        (Use(10 * GIB, 4 * GIB, 16 * GIB), 3 * GIB, "cpu", False),
        (Use(4 * GIB, 10 * GIB, 16 * GIB), 3 * GIB, "cpu", True),
        (Use(4 * GIB, 10 * GIB, 16 * GIB), 13 * GIB, "cpu", False),
    ],
)
def test_who_is_to_blame(use: Use, asked: int, device: str, others: bool) -> None:
    assert others_to_blame(use, asked, device) is others


def test_a_busy_machine_makes_it_a_crash_and_a_cap_does_not(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, error = make_run(), MemoryError("Unable to allocate 1.00 GiB for an array")
    monkeypatch.setattr(failure, "memory_bytes", lambda: (60 * GIB, 64 * GIB))
    status, told = status_of(error, config)
    assert status == "crashed"
    assert told is not None
    assert told.startswith("Out of memory, but other processes held 59.")
    assert told.endswith(" GiB of the machine's 64.00 GiB; run it again when they have ended.")
    task = dataclasses.replace(config.task, memory_cap_gib=1.0)
    assert status_of(error, dataclasses.replace(config, task=task)) == ("oom", None)
    monkeypatch.setattr(failure, "memory_bytes", lambda: (GIB // 8, GIB))
    assert status_of(error, config) == ("oom", None)  # 1 GiB more than held would never fit


def test_other_failures_are_crashes(make_run: MakeRun) -> None:
    assert status_of(ValueError("a"), make_run()) == ("crashed", None)
    assert status_of(KeyboardInterrupt(), make_run()) == ("interrupted", None)
    assert status_of(RuntimeError("std::bad_alloc"), make_run(task={"memory_cap_gib": 1.0})) == (
        "oom",
        None,
    )


@pytest.mark.parametrize(("held", "status"), [(GIB, "oom"), (12 * GIB, "crashed")])
def test_a_kill_by_the_kernel_counts_where_the_worker_was_the_large_one(
    monkeypatch: pytest.MonkeyPatch, held: int, status: str
) -> None:
    monkeypatch.setattr(launcher, "_oom_kills", lambda: 1)
    monkeypatch.setattr(launcher, "memory_bytes", lambda: (held, 16 * GIB))
    found, told = launcher._explain(-signal.SIGKILL, 0, Path("log.txt"), "The worker")
    assert found == status
    assert told.startswith("The kernel ended the worker for lack of memory")
    assert ("12.00 GiB of the machine's 16.00 GiB" in told) == (status == "crashed")


def test_memory_in_use_is_part_of_what_there_is() -> None:
    found = provenance.memory_bytes()
    assert found is not None
    used, total = found
    assert resource.getpagesize() < used < total <= psutil.virtual_memory().total
