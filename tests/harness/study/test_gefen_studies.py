"""The three stages of Gefen's quality study: which cells they plan, on which seeds and split."""

from collections import Counter
from typing import Any

import pytest
import yaml

from harness import optimizers
from harness.config.groups import load_group
from harness.study import parts

from .study_cells import Cell, planned, resolved

FRESH_SEEDS = {10, 11, 12, 13, 14}
TUNING_SEEDS = {100}


def options(cell: Cell) -> dict[str, Any]:
    """The optimizer options that a cell sets."""
    prefix = "++optimizer.options."
    return {k.removeprefix(prefix): v for k, v in cell.items() if k.startswith(prefix)}


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Invented winners in the place of configs/tuned/gefen_refine_*.yaml."""
    rates = {"adamw": 0.001, "gefen": 0.00141, "gefen_4bit": 0.000707}

    def load(group: str, name: str) -> dict[str, Any]:
        if group != "tuned":
            return load_group(group, name)
        model = name.removeprefix("gefen_refine_")
        return {"model": model, "winners": {key: {"lr": rate} for key, rate in rates.items()}}

    monkeypatch.setattr(parts, "load_group", load)
    return rates


def test_the_screen_names_each_form_and_judges_on_validation() -> None:
    found = planned("gefen_screen")
    assert {(c["seed"], c["task.eval_split"]) for c in found} == {(100, "validation")}
    assert {c["model"] for c in found} == {"gpt2_3m"}
    settings: dict[tuple[str, str], str] = {}
    for cell in found:
        model, chosen = cell["model"], options(cell)
        text = yaml.safe_dump([cell["optimizer"], chosen])
        assert (
            settings.setdefault((model, text), cell["optimizer.variant"])
            == (cell["optimizer.variant"])
        )  # no two variants with the same settings
        assert ("second_moment" in chosen) == (cell["optimizer"] != "adamw")
    assert len(settings) == len(found)


def test_every_variant_of_the_screen_is_a_valid_configuration() -> None:
    found = {cell["optimizer.variant"]: cell for cell in planned("gefen_screen")}
    for name, cell in found.items():
        config = resolved(cell)
        optimizers.check(config.optimizer)
        assert config.optimizer.variant == name
        assert options(cell).items() <= config.optimizer.options.items()


def test_refining_gives_adamw_as_many_trials_as_all_variants_of_gefen() -> None:
    found = planned("gefen_refine")
    assert {cell["seed"] for cell in found} == TUNING_SEEDS
    assert {cell["task.eval_split"] for cell in found} == {"validation"}
    counts = Counter((cell["model"], cell["seed"], cell["optimizer"]) for cell in found)
    assert len(counts) == 2 * len(TUNING_SEEDS) * 2
    for model in ("gpt2_3m", "llama_4m"):
        assert len({n for (m, _, _), n in counts.items() if m == model}) == 1


@pytest.mark.parametrize(("name", "steps"), [("gefen_confirm", 150), ("gefen_confirm_long", 600)])
def test_confirming_uses_fresh_seeds_the_test_split_and_both_rates(
    name: str, steps: int, tuned: dict[str, float]
) -> None:
    found = planned(name)
    assert {(cell["task.steps"], cell["task.warmup_steps"]) for cell in found} == {
        (steps, steps // 10)
    }
    assert {cell["task.eval_split"] for cell in found} == {"test"}
    seeds = Counter((cell["model"], cell["seed"]) for cell in found)
    assert set(seeds) == {(m, s) for m in ("gpt2_3m", "llama_4m") for s in FRESH_SEEDS}
    rates = {c["optimizer.variant"]: (c["optimizer.lr"], options(c)) for c in found}
    eight, four = rates["gefen"][1], rates["gefen_4bit"][1]
    assert (eight["first_moment_bits"], four["first_moment_bits"]) == (8, 4)
    assert rates == {
        "adamw": (tuned["adamw"], {}),
        "gefen": (tuned["adamw"], eight),
        "gefen_own_rate": (tuned["gefen"], eight),
        "gefen_4bit": (tuned["adamw"], four),
        "gefen_4bit_own_rate": (tuned["gefen_4bit"], four),
    }
    claim = load_group("claims", "gefen_loss")
    assert {*claim["subjects"].values(), claim["baseline"]} == set(rates)


def test_the_finalists_are_confirmed_in_the_form_they_were_tuned_in(
    tuned: dict[str, float],
) -> None:
    forms = [
        {
            (cell["model"], cell["optimizer.variant"]): options(cell)
            for cell in planned(name)
            if not cell["optimizer.variant"].endswith("own_rate")
        }
        for name in ("gefen_refine", "gefen_confirm", "gefen_confirm_long")
    ]
    assert forms[0] == forms[1] == forms[2]
