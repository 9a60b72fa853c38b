"""The published gradient-driven block rules, against exact and brute-force arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gefen import block_rules
from gefen.block_rules import block_length, group_length

Scores = dict[int, float]
# Many divisors, prime factors that repeat, and sizes whose first candidates lie above 8.
COUNTS = [2, 7, 12, 16, 30, 60, 64, 121, 210, 360, 512, 720, 11 * 13 * 17]
ROUNDING = 1e-13


def candidates(count: int, blocks: int) -> list[int]:
    return [p for p in range(1, count) if count % p == 0 and count // p >= blocks]


def paper_increments(gradient: NDArray[np.float64]) -> Scores:
    """e(p) - e(previous p) from exact rational variances; 1e-12 for the first candidate."""
    squares = [Fraction(float(g)) ** 2 for g in gradient.reshape(-1)]
    scores, previous = {1: 1e-12}, 0.0
    for p in candidates(len(squares), 2)[1:]:
        variances = []
        for start in range(0, len(squares), p):
            block = squares[start : start + p]
            mean = sum(block) / p
            variances.append(sum((value - mean) ** 2 for value in block) / p)
        spread = math.sqrt(sum(variances) / len(variances))
        scores[p] = spread - previous
        previous = spread
    return scores


def paper_answers(gradient: NDArray[np.float64]) -> set[int]:
    """The answers that rounding of the scores may lead to; one alone where scores differ."""
    scores = paper_increments(gradient)
    margin = ROUNDING * max(1e-12, *(abs(score) for score in scores.values()))
    least = min(scores.values())
    ties = [p for p, score in scores.items() if score <= least + margin]
    if least == 0:  # exact: blocks of equal elements, where the smallest must win
        ties = ties[:1]
    return {p if p >= 8 else 1 for p in ties}


def peak_scores(gradient: NDArray[np.float64]) -> Scores:
    logarithm = np.log(gradient.astype(np.float64).reshape(-1) ** 2 + 1e-12)
    scores = {}
    for p in candidates(logarithm.size, 4):
        means = logarithm.reshape(-1, p).mean(axis=1)
        scores[p] = float(np.abs(means[1:] - means[:-1]).mean())
    return scores


def peak_answers(gradient: NDArray[np.float64]) -> set[int]:
    """Answers with every comparison taken as `clearly greater` and as `perhaps greater`."""
    scores = peak_scores(gradient)
    order = list(scores)
    answers = set()
    for margin in (ROUNDING, -ROUNDING):
        maxima = [
            p
            for before, p, after in zip(order, order[1:], order[2:], strict=False)
            if p > 8 and scores[p] > max(scores[before], scores[after]) + margin
        ]
        best = max((scores[p] for p in maxima), default=0.0)
        answers |= {p for p in maxima if scores[p] >= best - ROUNDING} or {1}
    return answers


@st.composite
def gradients(draw: st.DrawFn) -> NDArray[np.float64]:
    """Noise, sometimes with a scale for each row or few distinct values, over many magnitudes."""
    count = draw(st.sampled_from(COUNTS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    width = draw(st.sampled_from(candidates(count, 1)))
    gradient = rng.standard_normal((count // width, width))
    kind = draw(st.sampled_from(["noise", "rows", "columns", "levels"]))
    if kind == "rows":
        gradient = gradient * np.exp(2 * rng.standard_normal((count // width, 1)))
    elif kind == "columns":
        gradient = gradient * np.exp(2 * rng.standard_normal((1, width)))
    elif kind == "levels":
        gradient = np.repeat(rng.integers(0, 3, (count // width, 1)), width, axis=1)
    return (gradient * 2.0 ** draw(st.integers(-30, 3))).astype(np.float32).astype(np.float64)


@settings(max_examples=25, deadline=None)
@given(gradients())
def test_paper_is_the_exact_rule(gradient: NDArray[np.float64]) -> None:
    assert block_length(torch.from_numpy(gradient), "paper") in paper_answers(gradient)


@settings(max_examples=150, deadline=None)
@given(gradients())
def test_peak_is_the_brute_force_rule(gradient: NDArray[np.float64]) -> None:
    assert block_length(torch.from_numpy(gradient), "peak") in peak_answers(gradient)


@settings(max_examples=15, deadline=None)
@given(gradients(), st.sampled_from([1, 3, 64]))
def test_chunks_do_not_change_the_answer(gradient: NDArray[np.float64], limit: int) -> None:
    tensor = torch.from_numpy(gradient)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_rules, "_CHUNK_ELEMENTS", limit)
        assert block_length(tensor, "peak") in peak_answers(gradient)
        assert block_length(tensor, "paper") in paper_answers(gradient)


@pytest.mark.parametrize("limit", [5, 100, 1 << 20])
def test_block_statistics_are_exact(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures behind both rules, for every divisor, within float64 rounding."""
    monkeypatch.setattr(block_rules, "_CHUNK_ELEMENTS", limit)
    gradient = np.random.default_rng(0).standard_normal(720)
    flat = torch.from_numpy(gradient)
    within = {1: 0.0}
    for p, q, deviation, _ in block_rules._levels(flat, block_rules._square, 360):
        within[p] = within[p // q] + deviation * (p // q) / 720
    spread = [math.sqrt(within[p]) for p in sorted(within)]
    assert np.diff(spread) == pytest.approx(list(paper_increments(gradient).values())[1:])
    jumps = {
        p: block_rules._mean_jump(means, block_rules._same)
        for p, _, _, means in block_rules._levels(flat, block_rules._logarithm, 180)
    }
    assert {1: peak_scores(gradient)[1]} | jumps == pytest.approx(peak_scores(gradient))


def scaled_rows(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Noise whose rows alternate between two scales, a thousand apart."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.where(torch.arange(rows) % 2 == 0, 1.0, 1e-3)
    return torch.randn(rows, columns, generator=generator) * scale[:, None]


@pytest.mark.parametrize(("rows", "columns"), [(64, 48), (24, 100), (64, 1024), (16, 1000)])
def test_peak_finds_the_row_length(rows: int, columns: int) -> None:
    assert block_length(scaled_rows(rows, columns), "peak") == columns


def test_peak_divides_long_rows() -> None:
    """3072 = 3 * 1024: the smallest divisor above 1024 that divides the row is 1536."""
    assert block_length(scaled_rows(16, 3072), "peak") == 1536
    assert block_length(scaled_rows(16, 4096), "peak") == 2048


@pytest.mark.parametrize("rule", ["paper", "peak"])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 5), (2,), (97,), (2, 97)])
def test_tensors_without_choice_have_blocks_of_one(shape: tuple[int, ...], rule: str) -> None:
    assert block_length(torch.randn(shape), rule) == 1


def test_paper_takes_blocks_of_equal_elements() -> None:
    """Rows of one value each: 11 alone removes the spread that 2 and 4 have found."""
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert block_length(values.repeat_interleave(11), "paper") == 11


def test_paper_takes_the_smallest_of_ties_and_none_below_eight() -> None:
    """2 to 16 elements are equal and tie at no increase, so 2 wins, and 2 becomes 1."""
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert block_length(values.repeat_interleave(16), "paper") == 1


def test_paper_depends_on_the_scale_of_the_gradient() -> None:
    """Recorded as published: the same noise gets blocks of 1, and of n / 2 once it is small."""
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert block_length(noise, "paper") == 1
    assert block_length(noise * 1e-6, "paper") != 1
    assert block_length(noise * 1e-8, "paper") == 2048


def test_peak_depends_on_the_scale_of_the_gradient() -> None:
    """Recorded as published: 1e-12 added to the square hides the structure of small gradients.

    Rows differ in scale, and of half of the half-rows nothing is left but a thousandth.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 48, generator=generator, dtype=torch.float64)
    rows = torch.randn(64, 1, generator=generator).double()
    halves = torch.randn(64, 2, generator=generator).repeat_interleave(24, 1)
    gradient = noise * (0.5 * rows).exp() * torch.where(halves < 0, 1e-3, 1.0)
    assert block_length(gradient, "peak") == 24
    assert block_length(gradient * 1e-7, "peak") == 48
    assert block_length(gradient * 1e-20, "peak") == 1


@pytest.mark.parametrize("rule", ["paper", "peak"])
def test_order_is_row_major_whatever_the_strides(rule: str) -> None:
    rows = scaled_rows(40, 60) * 1e-6
    stored = rows.t().contiguous().t()
    assert not stored.is_contiguous()
    assert block_length(stored, rule) == block_length(rows, rule)
    assert block_length(rows.view(4, 10, 60), rule) == block_length(rows, rule)
    assert block_length(scaled_rows(40, 60).t(), "peak") != 60


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_gradients_are_squared_in_float64(dtype: torch.dtype) -> None:
    """1e-4 squared underflows in float16; in float64 the rows still differ."""
    rows = (scaled_rows(32, 48) * 0.05).to(dtype)
    for rule in ("paper", "peak"):
        assert block_length(rows, rule) == block_length(rows.double(), rule)
    assert block_length(rows, "peak") == 48


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", ["paper", "peak"])
def test_non_finite_gradients_have_blocks_of_one(value: float, rule: str) -> None:
    rows = scaled_rows(64, 48)
    rows[3, 7] = value
    assert block_length(rows, rule) == 1


def test_another_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="'paper' or 'peak', not 'row'"):
        block_length(torch.ones(4), "row")


@pytest.mark.parametrize(
    ("count", "block", "expected"),
    [
        (4096, 64, 64),
        (4096, 1, 256),
        (1000, 1, 250),
        (257, 1, 1),
        (97, 1, 97),
        (1, 1, 1),
        (0, 1, 1),
    ],
)
def test_group_length(count: int, block: int, expected: int) -> None:
    assert group_length(count, block) == expected


@pytest.mark.parametrize(("count", "block"), [(10, 3), (10, 0), (10, 20)])
def test_a_block_that_does_not_divide_is_refused(count: int, block: int) -> None:
    with pytest.raises(ValueError, match="must divide"):
        group_length(count, block)
