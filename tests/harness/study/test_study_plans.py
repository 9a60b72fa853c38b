"""What studies plan: valid cells, and for STAM and all rivals seeds, splits, rates and arms."""

from collections import Counter, defaultdict
from functools import cache
from typing import Any

import pytest

from harness import optimizers
from harness.config import RunConfig, from_dict, validate
from harness.config.groups import load_group
from harness.errors import UserError
from harness.study import parts

from . import study_cells
from .study_cells import Cell, composed, resolved

TUNING_SEED = 100
planned = cache(study_cells.planned)  # its cells are not to be changed


class Winners(dict[str, dict[str, float]]):
    """A rate for whatever optimizer is asked for."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> dict[str, float]:
        return {"lr": 1e-4 * (1 + sum(name.encode()) % 50)}


@pytest.fixture(autouse=True)
def tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invented rates in the place of configs/tuned, for the model that each file is about."""

    def load(group: str, name: str) -> dict[str, Any]:
        model = name.removeprefix("tune_rivals_").removeprefix("stam_tune_")
        return (
            {"model": model, "winners": Winners()} if group == "tuned" else load_group(group, name)
        )

    monkeypatch.setattr(parts, "load_group", load)


def arms(found: list[Cell]) -> dict[tuple[Any, ...], set[int]]:
    """Seeds by part, optimizer (or variant) and rate factor."""
    seeds: dict[tuple[Any, ...], set[int]] = defaultdict(set)
    for cell in found:
        name = cell.get("optimizer.variant", cell["optimizer"])
        seeds[cell["part"], name, cell.get("optimizer.lr_factor", 1)].add(cell["seed"])
    return seeds


STUDIES = {"stam_loss": 15, "stam_rates": 45, "stam_spikes": 42, "rivals": 34, "rivals_extras": 44}


@pytest.mark.parametrize(("name", "count"), STUDIES.items())
def test_every_arm_has_the_same_seeds_that_nothing_was_tuned_on(name: str, count: int) -> None:
    found = planned(name)
    assert len(found) == count
    groups = arms(found)
    assert len({frozenset(seeds) for seeds in groups.values()}) == 1
    seeds = next(iter(groups.values()))
    assert TUNING_SEED not in seeds
    assert len(seeds) == {"stam_spikes": 7}.get(name, 2 if name.startswith("rivals") else 5)
    assert {cell["task.eval_split"] for cell in found} == {"test"}
    assert {cell["threads"] for cell in found} == {1}


COUNTS = {"tune": 30, "tune_rivals": 45, "convergence": 105, "memory": 54, "sensitivity": 48}
COUNTS |= {"stam_loss": 15, "stam_rates": 45, "stam_spikes": 42, "stam_state": 15, "stam_tune": 12}
COUNTS |= {"rivals_extras": 44}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_cells_of_every_part_are_valid_configurations(name: str, count: int) -> None:
    assert len(planned(name)) == count
    shapes: dict[tuple[Any, ...], Cell] = {}
    for cell in planned(name):
        # One of each part and set of options: composing takes half a second a cell.
        options = tuple(key for key in cell if key.startswith("++"))
        shapes.setdefault((cell["part"], options, cell["task"]), cell)
    for cell in shapes.values():
        config = resolved(cell)
        validate(config)
        if cell["part"] != "extras":
            optimizers.check(config.optimizer)


def test_rivals_are_every_optimizer_that_runs_without_an_extra() -> None:
    known = {
        name for name, entry in optimizers.registry.entries().items() if name != "gefen_ablation"
    }
    base, extras = ({cell["optimizer"] for cell in planned(name)} for name in list(STUDIES)[3:])
    assert extras == known
    assert base == {name for name in known if "_ao" not in name} - {"gefen_upstream", "gefen_x"}
    tuned = {cell["optimizer"] for cell in planned("tune_rivals")}
    assert tuned == base - {"gefen_paper"}
    rates = {
        cell["optimizer.variant"]: cell["optimizer.lr"] for cell in planned("rivals_extras")
    }  # fmt: skip
    assert rates["gefen_4bit"] == rates["adamw"] == rates["adamw4bit_ao"] != rates["gefen"]


def test_the_claims_conditions_are_there() -> None:
    spikes = planned("stam_spikes")
    conditions = Counter(
        (c["part"], c["optimizer.lr_factor"], c.get("task.gradient_noise", 0.0)) for c in spikes
    )
    assert set(conditions.values()) == {21}
    assert {noise > 0 for _, _, noise in conditions} == {True, False}
    assert min(c["task.grad_clip"] for c in spikes) > 1e6
    assert {factor for _, _, factor in arms(planned("stam_rates"))} == {1, 2, 4}
    assert {c["task.target_loss"] for c in planned("stam_loss")} == {4.84}
    precisions = {c["part"]: c.get("precision", "fp32") for c in planned("stam_state")}
    assert precisions == {"fp32": "fp32", "bf16": "bf16_pure"}


@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf")])
def test_noise_is_a_finite_number_from_zero(value: float) -> None:
    config = from_dict(RunConfig, composed(["tracker=none"]))
    config.task.gradient_noise = value
    with pytest.raises(UserError, match=r"task\.gradient_noise=.* must be a finite number, 0 or"):
        validate(config)
