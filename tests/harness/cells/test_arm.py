"""What counts as a repetition, and how labels tell unlike cells apart."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from harness.cells.arm import arm_of, differences
from harness.cells.identity import Cell, Origin, blank_record, identify, job
from harness.config import RunConfig, to_dict
from harness.study import planner
from harness.study.plan import labels

MakeRun = Callable[..., RunConfig]
ORIGIN = Origin("data", {"core": "c"}, {})


def cell(config: RunConfig, **origin: Any) -> Cell:
    found = dataclasses.replace(ORIGIN, **origin)
    return identify(planner.resolve(config), found, {"steps"})


def changed(config: RunConfig, group: str, **keys: Any) -> RunConfig:
    part = dataclasses.replace(getattr(config, group), **keys)
    return dataclasses.replace(config, **{group: part})


def test_seeds_and_folds_are_repetitions(make_run: MakeRun) -> None:
    base = changed(make_run(), "data", folds=5)
    repeats = [
        base,
        dataclasses.replace(base, seed=1),
        dataclasses.replace(base, model_seed=2, data_seed=3),
        changed(base, "data", folds=5, fold=2),
        dataclasses.replace(base, part="other", root="elsewhere"),
    ]
    cells = [cell(config) for config in repeats]
    assert len({item.arm for item in cells}) == 1
    assert len({item.id for item in cells}) == len(repeats) - 1  # where it writes is no other cell


def test_every_other_setting_is_another_arm(make_run: MakeRun) -> None:
    base = make_run()
    others = [
        cell(changed(base, "model", hidden_size=128)),
        cell(changed(base, "model", layers=3)),
        cell(changed(base, "optimizer", betas=[0.8, 0.9])),
        cell(changed(base, "optimizer", options={"fused": False})),
        cell(changed(base, "optimizer", lr=0.5)),
        cell(changed(base, "task", steps=13)),
        cell(dataclasses.replace(base, threads=2)),
        cell(dataclasses.replace(base, micro_batch=2)),
        cell(changed(base, "launch", nproc=2)),
        cell(base, data="other"),
        cell(base, weights="w"),
    ]
    assert len({item.arm for item in [cell(base), *others]}) == len(others) + 1


def test_records_carry_their_arm_and_old_ones_get_one(make_run: MakeRun) -> None:
    cells = [cell(dataclasses.replace(make_run(), seed=seed)) for seed in (0, 1)]
    wide = cell(changed(make_run(), "model", hidden_size=128))
    records = [blank_record(job(item, 1, "c"), "cpu") for item in (*cells, wide)]
    found = [arm_of(record.config, record.provenance) for record in records]
    assert found == [cells[0].arm, cells[0].arm, wide.arm]
    for record in records:
        del record.provenance["arm"]
    old = [arm_of(record.config, record.provenance) for record in records]
    assert old[0] == old[1] != old[2]


def test_differences_are_short_and_name_no_seed() -> None:
    base = {"seed": 0, "threads": 1, "model": {"layers": 2, "path": "a/one"}, "optimizer": {}}
    other = {
        "seed": 1,
        "threads": 2,
        "model": {"layers": 2, "path": "b/two"},
        "optimizer": {"betas": [0.9, 0.95], "layers": True},
    }
    assert differences([base, other]) == [
        "threads=1 path=one",
        "threads=2 path=two betas=0.9,0.95 layers=true",
    ]
    both = {"model": {"size": 1}, "optimizer": {"size": 1}}
    twice = {"model": {"size": 2}, "optimizer": {"size": 2}}
    assert differences([both, twice])[0] == "model.size=1 optimizer.size=1"
    assert differences([base, {**base, "seed": 5}]) == ["", ""]


@pytest.mark.parametrize(
    ("configs", "told"),
    [
        ([{}, {"seed": 1}], ["lr0.001", "lr0.001"]),
        ([{"threads": 1}, {"threads": 2}], ["threads=1/lr0.001", "threads=2/lr0.001"]),
        ([{"threads": 1}, {"threads": 2, "part": "b"}], ["lr0.001", "lr0.001"]),
    ],
)
def test_labels_say_what_differs_within_a_part(
    make_run: MakeRun, configs: list[dict[str, Any]], told: list[str]
) -> None:
    cells = [cell(make_run(**keys)) for keys in configs]
    found = [labels(cells)[item.id] for item in cells]
    start = "gpt2_tiny/adamw/32/fp32/"
    assert [text.removeprefix(start).rpartition("/")[0] for text in found] == told
    assert found[0].endswith("/s0")


def test_width_tells_cells_of_one_model_file_apart(make_run: MakeRun) -> None:
    cells = [cell(changed(make_run(), "model", hidden_size=size)) for size in (64, 128)]
    found = list(labels(cells).values())
    assert found == [f"gpt2_tiny/adamw/32/fp32/hidden_size={n}/lr0.001/s0" for n in (64, 128)]
    assert to_dict(cells[0].config)["model"]["name"] == "gpt2_tiny"
