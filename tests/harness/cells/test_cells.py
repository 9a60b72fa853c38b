"""Identity, skipping, failures and resumption of cells, on real worker processes."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest

from harness.cells import store
from harness.config import RunConfig, to_dict
from harness.study import planner, sweep

MakeRun = Callable[..., RunConfig]


def evaluation_losses(directory: Path) -> list[tuple[int, float]]:
    """(step, loss) of every evaluation of a finished cell."""
    curve: pd.DataFrame = store.read_curve(directory)
    rows = curve[curve["key"] == "eval/loss"]
    return list(zip(rows["step"], rows["value"], strict=True))


def test_equal_seeds_are_one_cell_however_they_are_spelt(make_run: MakeRun) -> None:
    spelt = [make_run(seed=3), make_run(seed=3, model_seed=3), make_run(seed=3, data_seed=3)]
    assert len(planner.plan(spelt, progress=False)) == 1


def test_factor_and_rate_name_the_same_run(make_run: MakeRun) -> None:
    plain = make_run()
    doubled = dataclasses.replace(plain.optimizer, lr_factor=2.0)
    written_out = dataclasses.replace(plain.optimizer, lr=plain.optimizer.lr * 2)
    configs = [dataclasses.replace(plain, optimizer=o) for o in (doubled, written_out)]
    assert len(planner.plan(configs, progress=False)) == 1


def test_a_run_leaves_a_whole_record_and_is_kept(make_run: MakeRun) -> None:
    config = make_run()
    record = sweep.run_cell(config, progress=False, command="a test")
    metrics = record.metrics
    assert record.status == "done", record.error
    assert metrics["steps"] == 12
    assert metrics["tokens"] == 12 * 32 * 4
    assert metrics["optimizer_state_bytes"] == metrics["optimizer_state_predicted_bytes"]
    assert metrics["final_eval_loss"] < metrics["initial_eval_loss"]
    assert metrics["first_step_seconds"] > 0
    assert 0 < metrics["step_p10_seconds"] <= metrics["step_median_seconds"]
    assert record.provenance["finished_utc"] >= record.provenance["started_utc"]
    assert record.provenance["command"] == "a test"
    path = Path(config.root) / "test" / "cells" / record.id / "record.json"
    written = path.stat().st_mtime_ns
    assert sweep.run_cell(config, progress=False).id == record.id
    assert path.stat().st_mtime_ns == written
    assert not (path.parent / "checkpoint.pt").exists()
    steps = [step for step, _ in evaluation_losses(path.parent)]
    assert steps == [0, 4, 8, 12]


def test_the_memory_task_measures_every_phase(make_run: MakeRun) -> None:
    task = {"kind": "memory", "warmup_optimizer_steps": 2, "timed_optimizer_steps": 5}
    record = sweep.run_cell(make_run("gefen", task=task), progress=False)
    metrics = record.metrics
    assert record.status == "done", record.error
    assert len(metrics["step_seconds"]) == 5
    for phase in ("model", "forward_backward", "first_step", "steady_step", "train_step"):
        assert metrics[f"peak_{phase}_bytes"] >= 0
    assert metrics["peak_bytes"] >= metrics["peak_train_step_bytes"]
    assert metrics["gradient_bytes"] == metrics["parameter_bytes"]
    assert metrics["optimizer_state_bytes"] == metrics["optimizer_state_predicted_bytes"]
    assert metrics["optimizer_checkpoint_bytes"] >= metrics["optimizer_state_bytes"]
    warm = sum(metrics["forward_backward_seconds"][1:]) / 2
    step = sorted(metrics["step_seconds"])[2]
    assert metrics["tokens_per_second"] == pytest.approx(32 * 4 / (warm + step))


def test_a_variant_names_a_run_and_an_unknown_prediction_stays_open(make_run: MakeRun) -> None:
    config = make_run("gefen")
    paper = dataclasses.replace(config.optimizer, options={"second_moment": "paper"})
    named = dataclasses.replace(paper, variant="published")
    configs = [dataclasses.replace(config, optimizer=o) for o in (named, paper)]
    (cell,) = planner.plan(configs, progress=False)  # a name alone makes no other run
    assert cell.label.split("/")[1] == "published"
    record = sweep.run_cell(configs[0], progress=False)
    assert record.status == "done", record.error
    assert record.config["optimizer"]["variant"] == "published"
    assert record.metrics["optimizer_state_predicted_bytes"] is None
    assert record.metrics["optimizer_state_bytes"] > 0


def test_divergence_is_a_result(make_run: MakeRun) -> None:
    config = make_run(task={"steps": 40, "divergence_window": 3, "grad_clip": 1e9})
    wild = dataclasses.replace(config.optimizer, lr=1e4)
    record = sweep.run_cell(dataclasses.replace(config, optimizer=wild), progress=False)
    assert record.status == "diverged"
    assert record.error is not None
    assert record.metrics["final_eval_loss"] is None
    assert record.metrics["steps"] < 40
    assert record.is_result


def test_a_timeout_and_a_crash_are_recorded_and_run_again(make_run: MakeRun) -> None:
    late = make_run(launch={"timeout_seconds": 0.3})
    record = sweep.run_cell(late, progress=False)
    assert (record.status, record.attempt) == ("timeout", 1)
    assert "launch.timeout_seconds=0.3" in (record.error or "")
    record = sweep.run_cell(make_run(), progress=False)
    assert (record.status, record.attempt) == ("done", 2)
    broken = make_run()
    options = dataclasses.replace(broken.optimizer, options={"fused": True, "foreach": True})
    record = sweep.run_cell(dataclasses.replace(broken, optimizer=options), progress=False)
    assert record.status == "crashed"
    assert "refuses its settings" in (record.error or "")


def test_a_broken_last_update_is_divergence(make_run: MakeRun) -> None:
    config = make_run(task={"steps": 1, "warmup_steps": 0})
    wild = dataclasses.replace(config.optimizer, lr=1e38)
    record = sweep.run_cell(dataclasses.replace(config, optimizer=wild), progress=False)
    assert record.status == "diverged"
    assert record.metrics["final_eval_loss"] is None


def test_memory_beyond_the_machine_is_an_oom_result(make_run: MakeRun) -> None:
    giant = make_run()
    model = dataclasses.replace(giant.model, hidden_size=2**20, heads=2**10)
    record = sweep.run_cell(dataclasses.replace(giant, model=model), progress=False)
    assert record.status == "oom", record.error
    assert record.is_result


def run_in_background(config: RunConfig) -> "subprocess.Popen[bytes]":
    """A process that runs the cell as the harness would."""
    code = (
        "import json, sys; from harness.study.sweep import run_cell; from harness.config import *;"
        "run_cell(from_dict(RunConfig, json.load(sys.stdin)), progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    import json

    assert process.stdin is not None
    process.stdin.write(json.dumps(to_dict(config)).encode())
    process.stdin.close()
    return process


def test_a_killed_run_goes_on_bit_for_bit(make_run: MakeRun, tmp_path: Path) -> None:
    task = {"steps": 120, "eval_every_steps": 40, "checkpoint_every_steps": 10}
    killed = make_run("gefen", task=task)  # its state is the harder one to bring back
    whole = dataclasses.replace(killed, root=str(tmp_path / "whole"))
    (cell,) = planner.plan([killed], progress=False)
    process = run_in_background(killed)
    deadline = time.monotonic() + 120
    while not (cell.directory / "checkpoint.pt").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started = psutil.Process(process.pid).children(recursive=True)  # the server and the worker
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(started) >= 2
    assert psutil.wait_procs(started, timeout=10)[1] == []
    assert not store.has_record(cell.directory)
    record = sweep.run_cell(killed, progress=False)
    assert record.attempt == 2
    assert record.metrics["resumed_at_step"] >= 10
    # The cold first step of the second process is none of the run's own phases.
    own = [record.metrics[f"peak_{p}_step_bytes"] for p in ("first_training", "training")]
    assert record.metrics["peak_bytes"] == max(own)
    assert record.metrics["peak_resumed_training_step_bytes"] >= 0
    reference = sweep.run_cell(whole, progress=False)
    assert "peak_resumed_training_step_bytes" not in reference.metrics
    assert reference.metrics["resumed_at_step"] is None
    assert reference.id == record.id
    assert record.metrics["final_eval_loss"] == reference.metrics["final_eval_loss"]
    resumed = store.read_curve(cell.directory).query("key in ('train/loss', 'eval/loss')")
    unbroken = store.read_curve(tmp_path / "whole" / "test" / "cells" / record.id).query(
        "key in ('train/loss', 'eval/loss')"
    )
    columns = ["step", "tokens", "key", "value"]
    pd.testing.assert_frame_equal(
        resumed[columns].reset_index(drop=True), unbroken[columns].reset_index(drop=True)
    )
