"""Choosing learning rates from records."""

import copy
import math
from pathlib import Path

import pytest
import yaml

from harness.cells import store
from harness.config import StudyConfig
from harness.errors import UserError
from harness.study import tuning
from harness.study.parts import expand


def trial(
    name: str,
    lr: float,
    loss: float | None,
    seed: int = 0,
    variant: str | None = None,
    model: str = "m",
    **keys: object,
) -> store.Record:
    """A synthetic record of one tuning run."""
    config = {
        "optimizer": {"name": name, "variant": variant, "lr": lr},
        "model": {"name": model},
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
        id=f"{model}{variant or name}{lr}{seed}",
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


def test_variants_of_an_optimizer_are_chosen_for_apart_and_share_its_budget() -> None:
    records = [trial("g", rate, loss, variant="g8") for rate, loss in ((1, 3.0), (2, 2.0))]
    records += [trial("g", rate, loss, variant="g4") for rate, loss in ((1, 2.5), (2, 2.6))]
    records[2].config["optimizer"]["options"] = records[3].config["optimizer"]["options"] = {"b": 4}
    four = [trial("a", rate, loss) for rate, loss in ((1, 4.0), (2, 3.0), (4, 2.0), (8, 3.0))]
    winners = tuning.choose(records + four)
    assert {name: winner["lr"] for name, winner in winners.items()} == {"a": 4, "g4": 1, "g8": 2}
    with pytest.raises(UserError, match="unequal budgets: a 2 rates, g 4 rates"):
        tuning.choose(records + four[:2])
    nameless = copy.deepcopy(records)
    for record in nameless:
        record.config["optimizer"]["variant"] = None
    with pytest.raises(UserError, match=r"g differ in more .* optimizer\.variant of its own"):
        tuning.choose(nameless)


def test_a_best_rate_inside_the_grid_asks_for_its_neighbours_by_root_2() -> None:
    losses = {0.5: 3.0, 1: 2.0, 2: 2.5}
    records = [trial("a", rate, loss) for rate, loss in losses.items()]
    assert tuning.next_rates(records) == {"a": [0.707, 1.41]}
    # A rate within rounding of a neighbour is that neighbour; both tried means finished.
    records += [trial("a", 0.71, 2.2), trial("a", math.sqrt(2), 1.9)]
    assert tuning.next_rates(records) == {"a": []}
    # Diverged above: the best stays inside, its upper neighbour is still worth a run.
    records = [trial("a", 1, 3.0), trial("a", 2, 2.0), trial("a", 4, None)]
    assert tuning.next_rates(records) == {"a": [1.41, 2.83]}


def test_a_best_rate_at_the_edge_asks_for_the_rate_beyond() -> None:
    rising = [trial("a", rate, loss) for rate, loss in ((1, 3.0), (2, 2.0))]
    assert tuning.next_rates(rising) == {"a": [4]}
    falling = [trial("a", rate, loss) for rate, loss in ((1, 2.0), (2, 3.0))]
    assert tuning.next_rates(falling) == {"a": [0.5]}
    assert tuning.next_rates([trial("a", 1, 2.0)]) == {"a": [0.5, 2]}


def test_the_search_keeps_budgets_equal_until_it_is_finished() -> None:
    """Followed to its end on smooth losses, the search brackets each minimum with equal budgets."""
    minima = {"a": 1.2, "g8": 2.9, "g4": 0.3}

    def run(name: str, rate: float) -> store.Record:
        loss = math.log(rate / minima[name]) ** 2
        return trial("a" if name == "a" else "g", rate, loss, variant=name)

    records = [run(name, rate) for name in minima for rate in (0.5, 1.0, 2.0)]
    for _ in range(10):
        wanted = tuning.next_rates(records)
        records += [run(name, rate) for name, rates in wanted.items() for rate in rates]
        if not any(wanted.values()):
            break
    assert not any(wanted.values())
    for name, winner in tuning.choose(records).items():  # raises where budgets are unequal
        assert abs(math.log(winner["lr"] / minima[name])) <= math.log(2) / 4 + 0.01
        assert not winner["edge_of_grid"]


def test_each_model_gets_a_file_and_tune_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning, "configs_dir", lambda: tmp_path)
    records = [trial("a", rate, rate, model=model) for rate in (1, 2) for model in ("m", "n")]
    for record in records:
        store.write_record(store.cell_dir(tmp_path, record.id), record)
    cells = [{"id": r.id, "part": "tune", "label": ""} for r in records]
    store.write_study(tmp_path, {"name": "fine", "command": "c", "cells": cells})
    paths = tuning.write(tmp_path)
    assert [path.name for path in paths] == ["fine_m.yaml", "fine_n.yaml"]
    assert {yaml.safe_load(path.read_text())["model"] for path in paths} == {"m", "n"}
    monkeypatch.setattr("sys.argv", ["tuning", str(tmp_path), "--next"])
    tuning.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == [
        "best 1 of 2 rates; add optimizer.lr 0.5"
    ] * 2
    extra = [*cells, {"id": "0" * 16, "part": "tune", "label": ""}]
    store.write_study(tmp_path, {"name": "fine", "command": "c", "cells": extra})
    with pytest.raises(UserError, match="1 of 5 trials have not run"):
        tuning.load(tmp_path)


def test_the_winners_feed_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [trial("a", 1e-3, 3.0), trial("a", 2e-3, 2.0)]
    for record in records:
        store.write_record(store.cell_dir(tmp_path, record.id), record)
    cells = [{"id": r.id, "part": "tune", "label": ""} for r in records]
    store.write_study(tmp_path, {"name": "tune", "command": "make tune", "cells": cells})
    monkeypatch.setattr(tuning, "configs_dir", lambda: tmp_path)
    monkeypatch.setattr("harness.config.groups.configs_dir", lambda: tmp_path)
    (path,) = tuning.write(tmp_path)
    assert path.name == "m.yaml"
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


def test_variants_are_named_configurations_of_an_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.config.groups.configs_dir", lambda: tmp_path)
    (tmp_path / "tuned").mkdir()
    winners = {"adamw": {"lr": 0.003}, "small": {"lr": 0.5}}
    text = yaml.safe_dump({"model": "m", "winners": winners})
    (tmp_path / "tuned" / "rates.yaml").write_text(text)
    variants = {
        "adamw": None,
        "small": {"optimizer": "gefen", "options": {"bits": 4, "cap": None}},
        "small_at_adamws": {"optimizer": "gefen", "rate_of": "adamw", "sweep": {"seed": [1, 2]}},
    }
    part = {"variants": variants, "tuned": "rates", "sweep": {"seq_len": [8]}}
    cells = [set(cell) for cell in expand(StudyConfig(parts={"p": part}), "s", [])]
    fixed = {"study=s", "part=p", "seq_len=8"}
    gefen = {*fixed, "optimizer=gefen"}
    at_adamws = {*gefen, "optimizer.variant=small_at_adamws", "optimizer.lr=0.003"}
    assert cells == [
        {*fixed, "optimizer=adamw", "optimizer.variant=adamw", "optimizer.lr=0.003"},
        {
            *(*gefen, "optimizer.variant=small", "optimizer.lr=0.5"),
            *("++optimizer.options.bits=4", "++optimizer.options.cap=null"),
        },
        {*at_adamws, "seed=1"},
        {*at_adamws, "seed=2"},
    ]


def test_alternating_parts_walk_their_variants_there_and_back() -> None:
    part = {"sweep": {"seed": [0, 1, 2]}, "variants": {"a": {}, "b": {}}, "alternate": True}
    cells = expand(StudyConfig(parts={"p": part}), "s", [])
    assert [cell[3][-1] for cell in cells] == ["a", "b", "b", "a", "a", "b"]
    assert [cell[2] for cell in cells[2:4]] == ["seed=1", "seed=1"]
    with pytest.raises(UserError, match=r"study.parts.p.alternate=yes must be true or false"):
        expand(StudyConfig(parts={"p": {**part, "alternate": "yes"}}), "s", [])


def test_a_rate_from_an_unfinished_search_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness.config.groups.configs_dir", lambda: tmp_path)
    (tmp_path / "tuned").mkdir()
    winners = {
        "adamw": {"lr": 0.003, "edge_of_grid": False},
        "lion": {"lr": 0.0005, "edge_of_grid": True},
        "old": {"lr": 0.1},  # a file from before edges were written
    }
    text = yaml.safe_dump({"model": "m", "winners": winners})
    (tmp_path / "tuned" / "edges.yaml").write_text(text)
    sweep = {"seed": [1, 2], "optimizer": list(winners)}
    study = StudyConfig(parts={"p": {"tuned": "edges", "sweep": sweep}})
    assert len(expand(study, "s", [])) == 6
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("WARNING: the rate of lion in configs/tuned/edges.yaml, 0.0005, lies")


@pytest.mark.parametrize(
    ("variants", "sentence"),
    [
        ({"v": {"option": {}}}, r"variants\.v has option, which is not known; allowed: optimizer,"),
        ({"v": {"sweep": {"seed": 3}}}, r"variants\.v\.sweep\.seed=3 must be a list"),
        ([], r"parts\.p\.variants=\[\] must map names to optimizers"),
        ({"v": "adamw"}, r"variants\.v has adamw, which is not known"),
    ],
)
def test_a_malformed_variant_is_named(variants: object, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        expand(StudyConfig(parts={"p": {"variants": variants}}), "s", [])


def test_the_command_line_cannot_override_what_variants_choose() -> None:
    study = StudyConfig(parts={"p": {"variants": {"adamw": {"sweep": {"optimizer.lr": [1]}}}}})
    for extra in ("optimizer=gefen", "optimizer.lr=3"):
        with pytest.raises(UserError, match="is swept by part p of the study"):
            expand(study, "s", [extra])
