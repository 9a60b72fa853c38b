"""Searches: what they ask for next, where they end, and that replaying them loses nothing."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from harness.cells import store
from harness.errors import UserError
from harness.study.search import Fixed, Largest, Point, Rates, Search, build

Judge = Callable[[Point], tuple[str, float | None]]


def record_of(point: Point, status: str, loss: float | None) -> store.Record:
    """A record as the worker leaves it, as far as a search reads it."""
    optimizer = {"name": point["optimizer"], "variant": point.get("optimizer.variant")}
    rate = point.get("optimizer.lr", 1e-3) * point.get("optimizer.lr_factor", 1)
    config = {
        "optimizer": {**optimizer, "lr": rate},
        "model": {"name": point.get("model", "m")},
        "task": {"eval_split": "validation"},
        "seed": point.get("seed", 0),
        **{k: 0 for k in ("precision", "seq_len", "micro_batch", "grad_accumulation", "data")},
    }
    return store.Record(
        id=repr(sorted(point.items())),
        study="s",
        part="p",
        label="",
        status=status,
        error="It fell over." if status == "crashed" else None,
        config=config,
        provenance={"code_hash": "c", "data_hash": "d", "device": "cpu"},
        metrics={"final_eval_loss": loss},
    )


def follow(search: Search, judge: Judge) -> tuple[list[Point], list[str]]:
    """Run a search to its end, one cell at a time; the points in the order in which they ran.

    After every cell a new replay from the records alone must ask for the same next cell.
    """
    answers: dict[str, store.Record] = {}
    ran: list[Point] = []
    for _ in range(search.at_most() + 1):
        state = search.state(lambda point: answers.get(repr(point)))
        waiting = [point for point in state.points if repr(point) not in answers]
        assert state.open == bool(waiting)
        if not waiting:
            assert [repr(p) for p in state.points if p not in ran] == []
            return ran, state.notes
        answers[repr(waiting[0])] = record_of(waiting[0], *judge(waiting[0]))
        ran.append(waiting[0])
    raise AssertionError("the search asked for more cells than it said")


def largest(values: "range | list[Any]") -> Largest:
    return Largest([{"part": "p", "optimizer": "a"}], "micro_batch", values)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 33])
def test_bisection_finds_every_possible_capacity(count: int) -> None:
    """Against the definition, for every capacity from none to all of the values."""
    values = range(4, 4 * count + 1, 4)
    for capacity in (0, *values):

        def judge(point: Point, capacity: int = capacity) -> tuple[str, None]:
            return ("done" if point["micro_batch"] <= capacity else "oom"), None

        ran, notes = follow(largest(values), judge)
        tried = [point["micro_batch"] for point in ran]
        assert len(set(tried)) == len(tried)
        fits = max((v for v in tried if v <= capacity), default=0)
        fails = min((v for v in tried if v > capacity), default=4 * count + 4)
        assert (fits, fails) == (capacity, capacity + 4)
        (note,) = notes
        expected = {0: "does not fit", values[-1]: "the largest to be tried, still fits"}
        assert expected.get(capacity, f"={capacity} fits, {capacity + 4} does not") in note


def test_doubling_comes_before_halving() -> None:
    ran, _ = follow(
        largest(range(1, 1025)), lambda p: ("done" if p["micro_batch"] <= 11 else "oom", None)
    )
    assert [p["micro_batch"] for p in ran] == [1, 2, 4, 8, 16, 12, 10, 11]


def test_a_list_of_models_is_searched_in_its_order() -> None:
    search = Largest([{"part": "p", "optimizer": "a"}], "model", ["s", "m", "l", "xl"])
    ran, notes = follow(search, lambda p: ("done" if p["model"] in "sm" else "oom", None))
    assert [p["model"] for p in ran] == ["s", "m", "xl", "l"]
    assert notes == ["p a: model=m fits, l does not."]


def test_a_crash_ends_its_own_search_and_no_other() -> None:
    bases = [{"part": "p", "optimizer": name} for name in ("a", "b")]

    def judge(point: Point) -> tuple[str, None]:
        if point["optimizer"] == "a" and point["micro_batch"] == 2:
            return "crashed", None
        return ("done" if point["micro_batch"] < 3 else "oom"), None

    ran, notes = follow(Largest(bases, "micro_batch", range(1, 9)), judge)
    assert notes == [
        "p a: stopped, micro_batch=2 ended as crashed. It fell over.",
        "p b: micro_batch=2 fits, 3 does not.",
    ]
    assert [p["micro_batch"] for p in ran] == [1, 2, 1, 2, 4, 3]


def rates(optimizers: list[str], max_trials: int = 40, **keys: list[Any]) -> Rates:
    points = [
        {"part": "p", "model": model, "optimizer": name, "seed": seed, "optimizer.lr_factor": f}
        for model in keys.get("model", ["m"])
        for name in optimizers
        for seed in keys.get("seed", [0])
        for f in (0.5, 1, 2)
    ]
    return Rates(points, max_trials)


def rate_of(point: Point) -> float:
    return float(point.get("optimizer.lr", 1e-3) * point.get("optimizer.lr_factor", 1))


def test_rates_are_bracketed_with_equal_budgets() -> None:
    """Smooth losses with known minima, in each model: the best is within a fourth of an octave."""
    minima = {("m", "a"): 1.2e-3, ("m", "b"): 7e-3, ("n", "a"): 2.4e-4, ("n", "b"): 1e-3}

    def judge(point: Point) -> tuple[str, float]:
        log_ratio = math.log2(rate_of(point) / minima[point["model"], point["optimizer"]])
        return "done", log_ratio**2 + 0.01 * point["seed"]

    ran, notes = follow(rates(["a", "b"], model=["m", "n"], seed=[3, 4]), judge)
    assert len(notes) == 2
    for model in ("m", "n"):
        tried = {
            name: sorted({rate_of(p) for p in ran if (p["model"], p["optimizer"]) == (model, name)})
            for name in ("a", "b")
        }
        assert len(tried["a"]) == len(tried["b"]) > 3
        for name, values in tried.items():
            best = min(values, key=lambda r: abs(math.log2(r / minima[model, name])))
            assert values[0] < best < values[-1]
            assert abs(math.log2(best / minima[model, name])) <= 0.26
    each = [(p["model"], p["optimizer"], rate_of(p)) for p in ran]
    assert all(each.count(one) == 2 for one in each)  # both seeds, whatever was added


def test_a_search_without_end_stops_at_its_maximum_with_equal_budgets() -> None:
    """Loss that falls for ever for one optimizer: the other gets as many trials, no more."""

    def judge(point: Point) -> tuple[str, float]:
        rate = rate_of(point)
        return "done", -rate if point["optimizer"] == "a" else math.log(rate / 1e-3) ** 2

    ran, (note,) = follow(rates(["a", "b"], max_trials=7), judge)
    counts = [sum(p["optimizer"] == name for p in ran) for name in ("a", "b")]
    assert counts[0] == counts[1] <= 7
    assert "stopped at search.max_trials=7; best rates: a " in note
    assert "(edge of its grid)" in note.split(", b ")[0]


def test_a_failed_trial_ends_the_search_with_a_sentence() -> None:
    ran, (note,) = follow(rates(["a"]), lambda point: ("crashed", None))
    assert len(ran) == 3
    assert "ended as crashed; run the study again" in note
    _, (note,) = follow(rates(["a"]), lambda point: ("diverged", None))
    assert "Every rate of a diverged" in note


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"kind": "grid"}, r"x\.search\.kind=grid is not known; allowed: rates, largest"),
        ("rates", r"x\.search\.kind=None is not known"),
        ({"kind": "rates"}, r"x\.search\.max_trials=None must be a whole number above 0"),
        ({"kind": "rates", "low": 1}, r"x\.search has low, which is not known"),
        ({"kind": "largest", "low": 1, "high": 2}, r"x\.search needs key"),
        ({"kind": "largest", "key": "k", "low": 4, "high": 2}, r"high=2 is below search\.low=4"),
        ({"kind": "largest", "key": "k", "values": []}, r"values=\[\] must be a list"),
    ],
)
def test_a_malformed_search_is_named(content: object, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build("x", content, [{"optimizer.lr": 1.0}])


def test_rates_need_a_grid_to_start_from() -> None:
    with pytest.raises(UserError, match="no starting grid"):
        build("x", {"kind": "rates", "max_trials": 3}, [{"optimizer": "a"}])
    assert isinstance(build("x", None, []), Fixed)
