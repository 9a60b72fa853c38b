"""The speed part of the GPU check on a CPU: turns, interleaving, processes, summary."""

import itertools
import json
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.config.groups import load_group
from harness.gpu_check import common, speed
from harness.step_bench import arms as step_arms
from harness.step_bench import summary, worker
from harness.step_bench.plan import StepSettings

TINY = {"family": "gpt2", "hidden_size": 32, "layers": 1, "heads": 2, "max_positions": 64}


def tiny_settings(precision: str, **values: Any) -> StepSettings:
    defaults: dict[str, Any] = {
        "model": TINY,
        "vocab_size": 256,
        "warmup_steps": 2,
        "timed_rounds": 5,
        "copy_bytes": 1 << 20,
    }
    return speed.speed_settings(precision, "cpu", **{**defaults, **values})


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_turns_are_balanced_in_place_and_predecessor(count: int) -> None:
    """A rotation gave each candidate the same predecessor in every round but one."""
    rounds = 2 * count * (1 + count % 2)  # two whole blocks
    orders = worker.turns(count, rounds, seed=5)
    assert all(sorted(order) == list(range(count)) for order in orders)
    places = Counter((place, name) for order in orders for place, name in enumerate(order))
    assert set(places.values()) == {rounds // count}
    follows = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert set(follows.values()) == {rounds // count}
    assert len(follows) == count * (count - 1)
    assert orders == worker.turns(count, rounds, seed=5)
    assert count == 2 or orders != worker.turns(count, rounds, seed=6)
    assert worker.turns(count, 1, seed=5) == orders[:1]


def test_rounds_are_interleaved_in_a_drawn_order() -> None:
    order: list[str] = []
    arms = [
        step_arms.Arm(name, SimpleNamespace(step=lambda n=name: order.append(n)), [])  # type: ignore[arg-type]
        for name in "abc"
    ]
    worker.run_rounds(arms, torch.device("cpu"), warmup=2, rounds=4)
    rounds = ["".join(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    expected = [*worker.turns(3, 2, seed=0), *worker.turns(3, 4, seed=1)]
    assert rounds == ["".join("abc"[index] for index in order) for order in expected]
    assert [(len(a.warmup_seconds), len(a.seconds)) for a in arms] == [(2, 4)] * 3


@pytest.mark.parametrize(("precision", "adamw_floor"), [("fp32", 28), ("bf16_pure", 14)])
def test_measure_counts_bytes_and_times_every_candidate(precision: str, adamw_floor: int) -> None:
    result = worker.measure(tiny_settings(precision))
    assert set(result["candidates"]) == {*speed.ADAMW_MODES, "gefen"}
    count = result["parameters"]
    for name, entry in result["candidates"].items():
        assert len(entry["step_seconds"]) == 5
        assert entry["parameters_finite"]
        assert 0 < entry["roofline_percent"] < 100
        if name != "gefen":
            # 28 or 14 bytes a parameter and the step counters, 4 bytes a tensor, read and written.
            assert 0 <= entry["bytes_moved"] - adamw_floor * count <= 8 * 40
    assert result["copy_bytes_per_second"] > 1e7


def test_candidates_share_gradients_and_start_equal() -> None:
    arms = step_arms.build_arms(tiny_settings("fp32"))
    first = arms[0]
    for arm in arms[1:]:
        for own, other in zip(first.parameters, arm.parameters, strict=True):
            assert torch.equal(own, other)
            assert own.data_ptr() != other.data_ptr()
            assert own.grad is not None
            assert other.grad is not None
            assert own.grad.data_ptr() == other.grad.data_ptr()
    modes = [(a.optimizer.defaults["fused"], a.optimizer.defaults["foreach"]) for a in arms[:3]]
    assert modes == [(True, False), (False, True), (False, False)]


def test_a_candidate_that_changes_the_gradients_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(arms: list[step_arms.Arm], *_: Any) -> None:
        arms[-1].parameters[0].grad.add_(1)  # type: ignore[union-attr]

    monkeypatch.setattr(worker, "run_rounds", spoil)
    with pytest.raises(RuntimeError, match="changed the gradients"):
        worker.measure(tiny_settings("fp32"))


def test_speed_processes_on_cpu(tmp_path: Path) -> None:
    """Real processes on a tiny model: one precision works, the other fails and fails the part."""

    def half_broken(precision: str) -> StepSettings:
        broken = {"candidates": {"gefen": {"name": "none_such"}}}
        return tiny_settings(precision, **(broken if precision == "bf16_pure" else {}))

    result = speed.run_speed(tmp_path, common.Deadline(200), lambda _: None, half_broken, 1)
    assert not result.ok
    assert result.facts["failed_processes"] == 1
    assert "none_such" in (tmp_path / "process_0_bf16_pure.log").read_text()
    assert set(result.facts["precisions"]) == {"fp32"}, (
        tmp_path / "process_0_fp32.log"
    ).read_text()
    assert result.markdown.count("| adamw_fused |") == 1


def fake_process(settings: StepSettings, stem: Path, timeout: float) -> dict[str, Any]:
    """A result in which AdamW takes twice Gefen's time, up to a few per cent by process."""
    noise = 1 + 0.01 * int(stem.name.split("_")[1])
    entry = {"first_step_seconds": 1.0, "roofline_percent": 50.0, "bytes_moved": 28}
    entry["optimizer_state_bytes"] = 8
    candidates = {
        name: {**entry, "step_median_seconds": 0.001 if name == "gefen" else 0.002 * noise}
        for name in settings.candidates
    }
    return {"copy_bytes_per_second": 1e9, "candidates": candidates}


def test_speed_part_compares_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "run_process", fake_process)
    result = speed.run_speed(tmp_path, common.Deadline(60), lambda _: None)
    assert result.ok
    for precision in speed.PRECISIONS:
        table = result.facts["precisions"][precision]
        assert table["processes"] == speed.PROCESSES >= 5
        assert table["candidates"]["gefen"]["ratio_to_subject"] == pytest.approx(1)
        low, high = table["candidates"]["adamw_loop"]["ratio_interval_95"]
        assert 2.0 < low < 2.04 < high < 2.08
    result.write(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["ok"] is True


def test_speed_part_that_runs_out_of_time_is_not_ok(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "run_process", fake_process)
    said: list[str] = []
    result = speed.run_speed(tmp_path, common.Deadline(-1), said.append)
    assert not result.ok
    assert "out of time after 0 of 10" in said[0]


def test_settings_survive_json() -> None:
    settings = speed.speed_settings("bf16_pure")
    assert StepSettings(**json.loads(json.dumps(asdict(settings)))) == settings
    assert settings.warmup_steps >= 10
    assert settings.timed_rounds >= 20
    assert settings.model == load_group("model", "gpt2_124m")


@pytest.mark.parametrize("count", [2, 3, 5, 31, 32, 100])
def test_t_interval_equals_scipy(count: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [math.sin(7 * i) for i in range(count)]
    mean, error = sum(values) / count, stats.sem(values)
    expected = stats.t.interval(0.95, count - 1, loc=mean, scale=error)
    assert summary.t_interval(values) == pytest.approx(expected, rel=2e-4, abs=1e-5)


def test_ratio_interval_is_symmetric_in_logs() -> None:
    ratio, low, high = summary.ratio_interval([2.0, 2.2, 1.8], [1.0, 1.0, 1.0])
    assert ratio == pytest.approx((2.0 * 2.2 * 1.8) ** (1 / 3))
    assert low * high == pytest.approx(ratio**2)
    assert summary.ratio_interval([2.0], [1.0]) == (2.0, 0.0, math.inf)
