"""Which settings decide a cell's identity, and which do not."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from harness import tasks
from harness.cells.identity import Origin, from_planned, identify, planned
from harness.config import RunConfig
from harness.study import planner

MakeRun = Callable[..., RunConfig]
ORIGIN = Origin("data", {"core": "c", "optimizer": "o"}, {"torch": "1"})


def cell_id(config: RunConfig, origin: Origin = ORIGIN) -> str:
    return identify(config, origin, tasks.reads(config.task.kind)).id


def replaced(config: RunConfig, key: str, value: Any) -> RunConfig:
    """A copy with one key, as task.steps, set to another value."""
    group, _, name = key.rpartition(".")
    if not group:
        return dataclasses.replace(config, **{name: value})
    part = dataclasses.replace(getattr(config, group), **{name: value})
    return dataclasses.replace(config, **{group: part})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("root", "elsewhere"),
        ("cache", "/elsewhere"),
        ("part", "other"),
        ("launch.timeout_seconds", 5.0),
        ("launch.limit", 3),
        ("tracker.name", "wandb"),
        ("tracker.project", "other"),
        ("study.name", "other"),
        ("study.title", "Other"),
        ("optimizer.variant", "other"),
        ("model.name", "other"),
        ("model.path", "/moved/weights"),  # their fingerprint counts
        ("data.name", "other"),
        ("data.path", "/moved/texts"),
        ("task.checkpoint_every_steps", 7),
        ("task.generate_samples", 3),  # of finetune
        ("task.warmup_optimizer_steps", 3),  # of memory
    ],
)
def test_what_leaves_the_numbers_alone_keeps_the_id(
    make_run: MakeRun, key: str, value: Any
) -> None:
    config = planner.resolve(make_run())
    assert cell_id(replaced(config, key, value)) == cell_id(config)


CHANGES: list[tuple[str, Any]] = [
    ("seq_len", 16),
    ("micro_batch", 5),
    ("grad_accumulation", 2),
    ("model_seed", 5),
    ("data_seed", 5),
    ("precision", "bf16_mixed"),
    ("threads", 2),
    ("device", "cuda"),
    ("optimizer.name", "lion"),
    ("optimizer.lr", 1e-2),
    ("optimizer.betas", [0.9, 0.99]),
    ("optimizer.options", {"fused": False}),
    ("model.hidden_size", 128),
    ("data.vocab_size", 300),
    ("data.folds", 4),
    ("task.kind", "memory"),
    ("task.steps", 13),
    ("task.eval_split", "test"),
    ("task.divergence_window", 3),
    ("task.memory_cap_gib", 1.0),
]


@pytest.mark.parametrize(("key", "value"), CHANGES)
def test_what_the_task_reads_changes_the_id(make_run: MakeRun, key: str, value: Any) -> None:
    config = planner.resolve(make_run())
    assert cell_id(replaced(config, key, value)) != cell_id(config)


def test_each_change_is_another_cell(make_run: MakeRun) -> None:
    config = planner.resolve(make_run())
    assert len({cell_id(replaced(config, *change)) for change in CHANGES}) == len(CHANGES)


def test_the_memory_task_takes_no_schedule_and_finetuning_completes_prompts(
    make_run: MakeRun,
) -> None:
    base = planner.resolve(make_run())
    memory = replaced(base, "task.kind", "memory")
    assert cell_id(replaced(memory, "task.steps", 99)) == cell_id(memory)
    assert cell_id(replaced(memory, "task.timed_optimizer_steps", 99)) != cell_id(memory)
    tuned = replaced(base, "task.kind", "finetune")
    assert cell_id(replaced(tuned, "task.generate_samples", 3)) != cell_id(tuned)


@pytest.mark.parametrize(
    "other",
    [
        {"data": "other"},
        {"code": {"core": "x", "optimizer": "o"}},
        {"code": {"core": "c", "optimizer": "x"}},
        {"libraries": {"torch": "2"}},
        {"weights": "w"},
    ],
)
def test_data_code_libraries_and_weights_change_the_id(
    make_run: MakeRun, other: dict[str, Any]
) -> None:
    config = planner.resolve(make_run())
    assert cell_id(config, dataclasses.replace(ORIGIN, **other)) != cell_id(config)


def test_where_files_lie_does_not_count_and_a_plan_brings_a_cell_back(make_run: MakeRun) -> None:
    config = planner.resolve(make_run())
    listed = dataclasses.replace(ORIGIN, files={"harness/train/loop.py": "a:b"})
    assert cell_id(config, listed) == cell_id(config)
    cell = identify(config, listed, ())
    assert from_planned(planned(cell)) == cell


def test_ranks_change_the_cell_but_not_what_it_computes(make_run: MakeRun) -> None:
    one = planner.resolve(make_run(micro_batch=4))
    two = planner.resolve(make_run(micro_batch=2, launch={"nproc": 2}))
    cells = [identify(config, ORIGIN, tasks.reads("pretrain")) for config in (one, two)]
    assert cells[0].id != cells[1].id
    assert cells[0].run == cells[1].run
