"""Choosing learning rates from records."""

import copy
from pathlib import Path

import pytest
import yaml

from harness import store, tuning
from harness.errors import UserError
from harness.schema import StudyConfig
from harness.studies import expand


def trial(name: str, lr: float, loss: float | None, seed: int = 0, **keys: object) -> store.Record:
    """A synthetic record of one tuning run."""
    config = {
        "optimizer": {"name": name, "lr": lr},
        "model": {"name": "m"},
        "data": {"name": "d"},
        "task": {"eval_split": "validation", "steps": 10},
        "precision": "fp32",
        "seq_len": 8,
        "micro_batch": 1,
        "grad_accumulation": 1,
        "seed": seed,
    }
    provenance = {"code_hash": "c", "data_hash": "d", "device": "cpu", "git_commit": "g", **keys}
    status = "diverged" if loss is None else "done"
    metrics = {"final_eval_loss": loss}
    return store.Record(
        id=f"{name}{lr}{seed}",
        study="tune",
        part="tune",
        label="",
        status=status,
        config=copy.deepcopy(config),
        provenance=provenance,
        metrics=metrics,
    )


def test_the_lowest_mean_wins_and_edges_are_told() -> None:
    records = [
        trial("a", 1e-3, 3.0),
        trial("a", 2e-3, 2.3),
        trial("a", 4e-3, 2.4),
        trial("b", 1e-3, 1.0),
        trial("b", 2e-3, None),
        trial("b", 4e-3, None),
    ]
    records += [
        trial(
            r.config["optimizer"]["name"],
            r.config["optimizer"]["lr"],
            r.metrics["final_eval_loss"],
            seed=1,
        )
        for r in records
    ]
    winners = tuning.choose(records)
    assert winners["a"]["lr"] == 2e-3
    assert winners["a"]["eval_loss_by_lr"] == {"0.001": 3.0, "0.002": 2.3, "0.004": 2.4}
    assert not winners["a"]["edge_of_grid"]
    assert winners["b"]["lr"] == 1e-3
    assert winners["b"]["edge_of_grid"]
    assert winners["b"]["eval_loss_by_lr"]["0.002"] == "diverged"


def test_trials_that_do_not_compare_are_refused() -> None:
    with pytest.raises(UserError, match="differ in code_hash"):
        tuning.choose([trial("a", 1, 1.0), trial("a", 2, 1.0, code_hash="other")])
    on_test = trial("a", 1, 1.0)
    on_test.config["task"]["eval_split"] = "test"
    with pytest.raises(UserError, match="validation only"):
        tuning.choose([on_test])
    unfinished = trial("a", 1, 1.0)
    unfinished.status = "crashed"
    with pytest.raises(UserError, match="ended as crashed"):
        tuning.choose([unfinished])
    with pytest.raises(UserError, match="unequal budgets: a 1 rates, b 2 rates"):
        tuning.choose([trial("a", 1, 1.0), trial("b", 1, 1.0), trial("b", 2, 1.0)])
    with pytest.raises(UserError, match="unequal budgets"):
        tuning.choose([trial("a", 1, 1.0), trial("a", 2, 1.0), trial("a", 2, 1.0, seed=1)])
    other_decay = trial("a", 2, 1.0)
    other_decay.config["optimizer"]["weight_decay"] = 0.5
    with pytest.raises(UserError, match="differ in more than the learning rate"):
        tuning.choose([trial("a", 1, 1.0), other_decay])
    with pytest.raises(UserError, match="Every rate of a diverged"):
        tuning.choose([trial("a", 1, None)])
    with pytest.raises(UserError, match="no records"):
        tuning.choose([])


def test_the_winners_feed_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [trial("a", 1e-3, 3.0), trial("a", 2e-3, 2.0)]
    for record in records:
        store.write_record(store.cell_dir(tmp_path, record.id), record)
    cells = [{"id": r.id, "part": "tune", "label": ""} for r in records]
    store.write_study(tmp_path, {"name": "tune", "command": "make tune", "cells": cells})
    monkeypatch.setattr(tuning, "configs_dir", lambda: tmp_path)
    monkeypatch.setattr("harness.groups.configs_dir", lambda: tmp_path)
    path = tuning.write(tmp_path)
    assert yaml.safe_load(path.read_text())["winners"]["a"]["lr"] == 2e-3
    content = yaml.safe_load(path.read_text())
    parts = {"one": {"overrides": {"task": "pretrain"}, "sweep": {"optimizer": ["a"]}}}
    study = StudyConfig(name="s", parts={"one": {**parts["one"], "tuned": "m"}})
    (overrides,) = expand(study, "s", ["seed=4"])
    assert overrides == [
        "study=s",
        "part=one",
        "task=pretrain",
        "optimizer=a",
        "optimizer.lr=0.002",
        "seed=4",
    ]
    assert content["model"] == "m"
    wrong_model = {
        "one": {"overrides": {"model": "n"}, "sweep": {"optimizer": ["a"]}, "tuned": "m"}
    }
    with pytest.raises(UserError, match="holds rates for model m, not for n"):
        expand(StudyConfig(name="s", parts=wrong_model), "s", [])
    missing = {"one": {"sweep": {"optimizer": ["z"]}, "tuned": "m"}}
    with pytest.raises(UserError, match="no learning rate for optimizer z"):
        expand(StudyConfig(name="s", parts=missing), "s", [])


def test_a_part_takes_the_product_of_its_sweep() -> None:
    sweep = {"optimizer": ["a", "b"], "seed": [0, 1, 2]}
    study = StudyConfig(name="s", parts={"p": {"sweep": sweep}})
    cells = expand(study, "s", [])
    assert len(cells) == 6
    assert cells[1] == ["study=s", "part=p", "optimizer=a", "seed=1"]
    with pytest.raises(UserError, match="optimizer is swept by part p"):
        expand(study, "s", ["optimizer=c"])
    with pytest.raises(UserError, match=r"study.parts.p.sweep.seed=3 must be a list"):
        expand(StudyConfig(parts={"p": {"sweep": {"seed": 3}}}), "s", [])
    with pytest.raises(UserError, match=r"study.parts.p has sweeep, which is not known"):
        expand(StudyConfig(parts={"p": {"sweeep": {}}}), "s", [])
