"""A cap on memory, and what a run that failed leaves in its record."""

import dataclasses
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.cells import identity, messages, store
from harness.config import RunConfig, TaskConfig, validate
from harness.errors import UserError
from harness.launch import launcher
from harness.study import planner, sweep
from harness.study.origins import Origins
from harness.train.facts import Facts, Laps, process_age_seconds

MakeRun = Callable[..., RunConfig]
ROOT = Path(harness.__file__).resolve().parents[1]
MIB = 1 << 20

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts under Linux")

CAPPED = """
import json, sys, torch
from harness.meters import limits
from harness.meters.memory import MemoryMeter
cap, size, fill = (int(a) for a in sys.argv[1:])
meter = MemoryMeter("cpu", cap << 20)
limits.enforce(cap << 20, torch.device("cpu"), meter.baseline_data_bytes)
held = []
try:
    with meter.phase("grow"):
        while len(held) * size < 4 * cap:
            held.append(torch.empty(size << 18))
            if fill:
                held[-1].fill_(1)
    error = None
except (MemoryError, RuntimeError) as raised:
    error = type(raised).__name__
limits.lift()
after = torch.empty(4 * cap << 18).numel()
print(json.dumps({"held": len(held) * size, "error": error, "peak": meter.peaks["grow"]}))
"""


@needs_linux
@pytest.mark.parametrize("fill", [0, 1])
def test_a_cap_refuses_what_lies_beyond_it_touched_or_not(fill: int) -> None:
    """Blocks of 16 MiB under 384 MiB: all that fit, short of what threads map; then freedom."""
    process = subprocess.run(
        [sys.executable, "-c", CAPPED, "384", "16", str(fill)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert process.returncode == 0, process.stderr
    got = json.loads(process.stdout)
    assert got["error"] == "RuntimeError"
    assert 384 - 32 <= got["held"] <= 384
    if fill:
        assert got["peak"] == pytest.approx(got["held"] * MIB, rel=0.02)


@needs_linux
def test_a_cell_beyond_its_cap_is_an_oom_that_says_where_and_how_much(make_run: MakeRun) -> None:
    cap = 24 / 1024
    config = make_run(task={"kind": "memory", "memory_cap_gib": cap}, micro_batch=64)
    record = sweep.run_cell(config, progress=False)
    metrics = record.metrics
    assert record.status == "oom", record.error
    assert metrics["memory_cap_bytes"] == 24 * MIB
    assert metrics["failed_phase"] == "forward_backward"
    # Held when memory was refused: below what fits, and near the cap (see harness.meters.limits).
    assert 0.5 * 24 * MIB < metrics["failure_bytes"] < 24 * MIB + 80 * MIB
    assert metrics["peak_forward_backward_bytes"] > metrics["peak_model_bytes"] >= 0
    assert metrics["parameter_bytes"] == 4 * metrics["parameters"] > 0
    assert metrics["startup_seconds"] == pytest.approx(
        sum(metrics[f"startup_{p}_seconds"] for p in ("process", "import", "data", "model"))
    )


def test_a_phase_above_the_cap_is_refused_at_its_end() -> None:
    import torch

    from harness.meters.limits import MemoryCapExceeded
    from harness.meters.memory import MemoryMeter

    meter = MemoryMeter("cpu", 8 * MIB)
    with meter.phase("small"):
        torch.ones(1 << 18)
    with pytest.raises(MemoryCapExceeded, match="phase large held"), meter.phase("large"):
        torch.ones(64 << 18)


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan")])
def test_a_cap_must_be_above_zero(cap: float) -> None:
    task = TaskConfig(memory_cap_gib=cap)
    with pytest.raises(UserError, match=r"task\.memory_cap_gib=.* must be a finite number above 0"):
        validate(RunConfig(task=task))


def test_the_cap_is_part_of_what_a_cell_is(make_run: MakeRun) -> None:
    base = planner.resolve(make_run())
    capped = dataclasses.replace(base, task=dataclasses.replace(base.task, memory_cap_gib=1.0))
    assert Origins().cell(base, "data").id != Origins().cell(capped, "data").id


class Meter:
    """What `Facts` reads of a memory meter."""

    method, baseline_bytes = "vmhwm", 7

    def __init__(self) -> None:
        self.peaks, self.reserved = {"model": 100}, dict[str, int]()

    def high_water_bytes(self) -> int:
        return 300


def test_a_killed_worker_leaves_what_it_had_told(make_run: MakeRun, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    facts = Facts(told.append)
    facts.add(startup_model_seconds=1.5)
    facts.meter = Meter()  # type: ignore[assignment]
    facts.enter("forward_backward")
    lines = [messages.FACTS_MARK + json.dumps(line) for line in told]
    stream = io.StringIO("\n".join(["chatter", *lines, messages.FACTS_MARK + "{torn"]))
    log, learnt, seen = io.StringIO(), dict[str, Any](), list[Any]()
    launcher._relay(stream, log, seen.append, learnt)
    assert (log.getvalue(), seen) == ("chatter\n", [])
    (cell,) = planner.plan([make_run()], progress=False)
    blank = identity.blank_record(identity.job(cell, 1, "c"), "cpu")
    record = launcher._failed(cell, blank, "oom", "The kernel ended it.", learnt)
    expected = {
        "startup_model_seconds": 1.5,
        "peak_model_bytes": 100,
        "failed_phase": "forward_backward",
        "failure_bytes": 300,
    }
    assert store.read_record(cell.directory).metrics == record.metrics == expected
    timeout = launcher._failed(cell, blank, "timeout", "Late.", learnt)
    assert "failure_bytes" not in timeout.metrics


def test_an_exception_keeps_the_metrics_and_names_the_inner_phase() -> None:
    facts = Facts(lambda values: None)
    facts.meter = Meter()  # type: ignore[assignment]
    facts.enter("training_step")
    facts.collect = lambda: ({"steps": 3}, [(1, 2, 3.0, "key", 4.0)])
    with facts.during("checkpoint"):
        pass
    assert facts.phase == "training_step"

    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="full"), facts.during("evaluation"):
        fail()
    metrics, rows = facts.failure("crashed")
    assert (metrics["failed_phase"], metrics["steps"], len(rows)) == ("evaluation", 3, 1)
    assert "failure_bytes" not in metrics
    assert facts.failure("oom")[0]["failure_bytes"] == 300
    facts.collect = fail  # type: ignore[assignment]
    assert facts.failure("crashed")[0]["peak_model_bytes"] == 100


def test_laps_and_the_age_of_a_process_hold_a_known_sleep() -> None:
    laps = Laps()
    time.sleep(0.2)
    assert 0.2 <= laps.lap() < 0.2 + 1.0
    code = "import time; time.sleep(0.5); from harness.train.facts import *;"
    code += "print(process_age_seconds())"
    started = time.perf_counter()
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    whole = time.perf_counter() - started
    assert 0.5 <= float(process.stdout) <= whole + 0.02  # the kernel's tick
    assert process_age_seconds() > 0
