"""Estimates against their documented rule, worked out by hand, and on published records."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import models
from harness.cells import store
from harness.config import ModelConfig, RunConfig, from_dict, to_dict
from harness.config.groups import configs_dir, load_group
from harness.study import estimate as estimates
from harness.study.estimate import Estimator, duration, size, total

MakeRun = Callable[..., RunConfig]


def finished(config: RunConfig, seconds: int, **metrics: Any) -> store.Record:
    """A record of `config` that took `seconds` from start to end."""
    return store.Record(
        id="0",
        study="elsewhere",
        part="p",
        label="",
        status="done",
        config=to_dict(config),
        provenance={
            "started_utc": "2026-01-01T00:00:00+00:00",
            "finished_utc": f"2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}+00:00",
        },
        metrics={
            "parameters": 1000,
            "startup_seconds": 10.0,
            "step_median_seconds": 0.5,
            **metrics,
        },
    )


def test_a_pretraining_run_scales_with_parameters_and_tokens(make_run: MakeRun) -> None:
    """12 steps of 4 x 32 tokens and 4 evaluations of 512: 4608 + 2048 = 6656 token passes.

    100 s = 10 s start-up + 6 s of steps + 84 s for the rest.
    """
    estimator, config = Estimator(), make_run()
    assert estimator.estimate(config) is None
    estimator.learn(finished(config, 100), 10_000)
    same = estimator.estimate(config)
    assert same is not None
    assert same.seconds == pytest.approx(100)
    assert (same.disk_bytes, same.checkpoint_bytes) == (10_000, 12_000)
    longer = estimator.estimate(make_run(task={"steps": 24, "eval_every_steps": 4}))
    assert longer is not None
    for every in (0, 12):  # none but what the last step would write
        bare = estimator.estimate(make_run(task={"checkpoint_every_steps": every}))
        assert bare is not None
        assert bare.checkpoint_bytes == 0
    passes = 3 * 24 * 4 * 32 + 7 * 512
    assert longer.seconds == pytest.approx(10 + 12 + 84 * passes / 6656)


def test_a_memory_run_scales_steps_and_passes_apart(make_run: MakeRun) -> None:
    """3 + 5 + 2 steps of 0.5 s, 10 s start-up, 35 s for two passes of 4 x 32 tokens."""
    task = {"kind": "memory", "warmup_optimizer_steps": 3, "timed_optimizer_steps": 5}
    estimator, config = Estimator(), make_run(task=task)
    estimator.learn(finished(config, 50), 10_000)
    found = estimator.estimate(make_run(task=task, micro_batch=8))
    assert found is not None
    assert found.seconds == pytest.approx(10 + 5 + 70)
    assert found.checkpoint_bytes == 0
    assert estimator.estimate(make_run()) is None  # training is another task


def test_the_nearest_record_is_the_same_optimizer_then_the_same_study(make_run: MakeRun) -> None:
    estimator, config = Estimator(), make_run("gefen")
    for seconds, name, study in ((40, "adamw", "test"), (60, "gefen", "other")):
        record = finished(make_run(name), seconds)
        estimator.learn(dataclasses.replace(record, study=study), 10_000)
    assert estimator.estimate(config).seconds == pytest.approx(60)  # type: ignore[union-attr]
    record = dataclasses.replace(finished(config, 80), study="test")
    estimator.learn(record, 10_000)
    assert estimator.estimate(config).seconds == pytest.approx(80)  # type: ignore[union-attr]
    failed = dataclasses.replace(finished(config, 20), study="test", status="oom")
    estimator.learn(failed, 10_000)
    assert estimator.estimate(config).seconds == pytest.approx(80)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["gpt2_3m", "llama_60m", "llama3_1b"])
def test_parameters_are_counted_closely_enough(name: str) -> None:
    values = load_group("model", name)
    counted = sum(
        math.prod(spec.shape) for spec in models.meta_shapes(from_dict(ModelConfig, values), 4096)
    )
    estimate = estimates._parameters({"model": values, "data": {"vocab_size": 4096}})
    assert estimate == pytest.approx(counted, rel=0.03)


def test_both_forms_of_a_study_estimate_and_a_torn_record_does_not(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """In `runs` the one cell's own files; packed, a share of the two files for each record."""
    config, runs, packed = make_run(), tmp_path / "runs", tmp_path / "packed"
    record = finished(config, 100)
    store.write_record(store.cell_dir(runs, "0"), record)
    torn = store.cell_dir(runs, "1") / store.RECORD_FILE
    store.write_bytes_atomic(torn, b'{"id": ')
    records = [record, dataclasses.replace(record, id="1", status="oom")]
    store.write_packed(packed, records, store.read_curves(packed, []))
    single = Estimator([runs]).estimate(config)
    assert single is not None
    assert single.disk_bytes == (runs / "cells" / "0" / "record.json").stat().st_size
    shared = Estimator([packed]).estimate(config)
    assert shared is not None
    assert shared.seconds == single.seconds == pytest.approx(100)
    assert shared.disk_bytes == (packed / "records.jsonl").stat().st_size // 2


def test_published_records_estimate_themselves() -> None:
    """Every record's own cell, estimated from all records: within its group's spread."""
    folder = configs_dir().parent / "results" / "reproduce_full"
    estimator = Estimator([folder])
    _, records = store.load_study(folder)
    for record in (r for r in records if r.config["task"]["kind"] == "memory"):
        values = {k: v for k, v in record.config.items() if k != "tracker"}
        config = from_dict(RunConfig, {**values, "study": {"name": "reproduce_full"}})
        found = estimator.estimate(config)
        taken = estimates._known(record, 0)
        assert found is not None
        assert taken is not None
        own = taken.startup_seconds + taken.step_seconds + taken.other_seconds
        assert found.seconds == pytest.approx(own, abs=0.5)  # provenance keeps whole seconds


def test_a_record_that_comes_in_meanwhile_does_not_take_an_answer_away(make_run: MakeRun) -> None:
    """The live table asks in a thread of its own; what it asks for is learned anew just then."""
    config = make_run()
    estimator = Estimator()

    class Emptied(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, value)
            estimator.learn(finished(config, 30), 10_000)

    estimator._answers = Emptied()
    assert estimator.estimate(config) is None
    assert estimator.estimate(config) is not None


def test_times_and_sizes_read_as_a_person_says_them() -> None:
    assert [duration(s) for s in (4, 80, 600, 7200)] == ["4 s", "80 s", "10 min", "2.0 h"]
    assert [size(b) for b in (12, 3e3, 4.4e6, 2.5e9)] == ["12 B", "3 kB", "4 MB", "2.5 GB"]
    one = estimates.Estimate(60, 1_000_000, 3_000_000)
    assert total([one, one]) == "about 2 min and 5 MB of disk"
    assert total([one, None]) == "about 60 s and 4 MB of disk, and 1 without an estimate"
    assert total([None]) == "no estimate of time and disk (no finished record compares)"
