"""The programme against exhaustive search and against a plain O(k n^2) one; the histogram."""

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gefen.codebook import BINS, block_histogram, optimal_levels
from gefen.codes import padded_codebook


def centres(bins: int) -> NDArray[np.float64]:
    return -1 + (2 * np.arange(bins) + 1) / bins


def quantisation_cost(weights: NDArray[np.int64], levels: NDArray[np.floating]) -> float:
    """Squared error when every bin goes to its nearest level."""
    errors = (centres(len(weights))[:, None] - levels[None, :].astype(np.float64)) ** 2
    return float(weights @ errors.min(axis=1))


def best_of_all_partitions(weights: NDArray[np.int64], count: int) -> float:
    """Try every contiguous partition into `count` cells and every place of the level 0."""
    x, bins = centres(len(weights)), len(weights)
    best = np.inf
    for inner in itertools.combinations_with_replacement(range(bins + 1), count - 1):
        borders = [0, *inner, bins]
        for zero in range(1, count - 1):
            cost = 0.0
            for cell in range(count):
                part = slice(borders[cell], borders[cell + 1])
                w, v = weights[part], x[part]
                fixed = {0: -1.0, zero: 0.0, count - 1: 1.0}
                level = fixed.get(cell, float(w @ v / w.sum()) if w.sum() else 0.0)
                cost += float(w @ (v - level) ** 2)
            best = min(best, cost)
    return best


def plain_programme(weights: NDArray[np.int64], count: int) -> float:
    """O(count n^2) with two states (0 used or not), all cells by brute force."""
    x, bins = centres(len(weights)), len(weights)
    prefix = [np.concatenate([[0.0], np.cumsum(weights * x**power)]) for power in (0, 1, 2)]
    mass, first, second = (p[None, :] - p[:, None] for p in prefix)
    mean_cost = second - first**2 / np.where(mass > 0, mass, 1)
    mean_cost[np.tril_indices(bins + 1, -1)] = np.inf
    zero_cost = np.where(np.isinf(mean_cost), np.inf, second)
    forced = prefix[2] + 2 * prefix[1] + prefix[0]
    unused, used = forced, np.full(bins + 1, np.inf)
    for _ in range(count - 2):
        unused, used = (
            (unused[:, None] + mean_cost).min(axis=0),
            np.minimum(
                (used[:, None] + mean_cost).min(axis=0), (unused[:, None] + zero_cost).min(axis=0)
            ),
        )
    last = (prefix[2][-1] - prefix[2]) - 2 * (prefix[1][-1] - prefix[1]) + mass[:, -1]
    return float((used + last).min())


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.integers(0, 9), min_size=2, max_size=8).filter(lambda w: len(w) % 2 == 0),
    count=st.integers(3, 5),
)
def test_optimal_against_every_partition(weights: list[int], count: int) -> None:
    array = np.array(weights)
    levels = optimal_levels(array, count)
    assert len(levels) <= count
    best = best_of_all_partitions(array, count)
    assert quantisation_cost(array, levels) == pytest.approx(best, rel=1e-5, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    half=st.integers(2, 60),
    count=st.integers(3, 40),
    empty=st.floats(0, 0.95),
    peak=st.floats(0.02, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_optimal_against_the_plain_programme(
    half: int, count: int, empty: float, peak: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = centres(2 * half)
    weights = rng.poisson(1000 * np.exp(-(((x - rng.normal() * 0.2) / peak) ** 2)))
    weights[rng.random(2 * half) < empty] = 0
    levels = optimal_levels(weights, count)
    assert (np.diff(levels) > 0).all()
    best = plain_programme(weights, count)
    # The levels are float32: their rounding costs 1e-14 a unit of weight.
    found = quantisation_cost(weights, levels)
    assert found == pytest.approx(best, rel=1e-6, abs=1e-9 * (1 + weights.sum()))


@pytest.mark.parametrize("count", [16, 64, 256])
def test_optimal_on_a_larger_histogram(count: int) -> None:
    rng = np.random.default_rng(count)
    weights = np.histogram(np.clip(rng.laplace(0.05, 0.2, 10**6), -1, 1), 512, (-1, 1))[0]
    levels = optimal_levels(weights, count)
    assert len(levels) == count
    found = quantisation_cost(weights, levels)
    assert found == pytest.approx(plain_programme(weights, count), rel=1e-7)


def one_sided() -> NDArray[np.int64]:
    weights = np.zeros(BINS, dtype=np.int64)
    weights[BINS // 2 :] = np.arange(BINS // 2)
    return weights


@pytest.mark.parametrize(
    "weights",
    [
        np.histogram(np.random.default_rng(0).normal(0, 0.25, 10**6), BINS, (-1, 1))[0],
        np.ones(BINS, dtype=np.int64) * 10**9,
        one_sided(),
        one_sided()[::-1],
    ],
)
def test_full_size(weights: NDArray[np.int64]) -> None:
    begin = time.perf_counter()
    levels = optimal_levels(weights)
    seconds = time.perf_counter() - begin
    assert seconds < 5
    assert levels.dtype == np.float32
    assert len(levels) == 256
    assert (np.diff(levels) > 0).all()
    assert {-1.0, 0.0, 1.0} <= set(levels.tolist())
    np.testing.assert_array_equal(levels, optimal_levels(weights.copy()))
    # No single level can be moved for the better: the cells' means are their levels.
    cost = quantisation_cost(weights, levels)
    for position in (1, 100, 200, 254):
        for shift in (-1e-5, 1e-5):
            moved = levels.astype(np.float64)
            moved[position] += 0 if levels[position] == 0 else shift
            assert quantisation_cost(weights, moved) >= cost * (1 - 1e-7)


def test_fewer_bins_than_levels() -> None:
    weights = np.zeros(BINS, dtype=np.int64)
    weights[[0, 5, 2048, 4000]] = 3, 1, 7, 2
    levels = optimal_levels(weights)
    expected = np.array([-1.0, 0.0, 1.0, *centres(BINS)[[0, 5, 2048, 4000]]])
    np.testing.assert_allclose(levels, np.sort(expected), rtol=1e-6)
    np.testing.assert_array_equal(optimal_levels(np.zeros(8)), [-1, 0, 1])


def test_padding_repeats_the_last_level() -> None:
    codebook = padded_codebook(np.array([-1, -0.5, 0, 1], dtype=np.float32), 256)
    assert codebook.shape == (256,)
    assert codebook[:4].tolist() == [-1, -0.5, 0, 1]
    assert bool((codebook[4:] == 1).all())


@pytest.mark.parametrize(("weights", "count"), [(np.ones(3), 3), (np.ones(4), 2)])
def test_refuses_what_has_no_answer(weights: NDArray[np.float64], count: int) -> None:
    with pytest.raises(ValueError, match="even number of bins"):
        optimal_levels(weights, count)


def test_histogram_against_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(6, 3, 40, generator=generator)
    gradient[1, 1] = 0
    gradient[2, 0, 3] = torch.nan
    gradient[3, 2, 0] = torch.inf
    gradient[:, 2, 30:] = 0  # the filling of a short last block
    expected = np.zeros(BINS, dtype=np.int64)
    for row, block in itertools.product(range(6), range(3)):
        values = gradient[row, block, : 30 if block == 2 else 40].double().numpy()
        if np.isfinite(values).all() and np.abs(values).max() > 0:
            expected += np.histogram(values / np.abs(values).max(), BINS, (-1, 1))[0]
    kept = gradient.clone()
    found = block_histogram(gradient, 110)
    assert torch.equal(gradient.nan_to_num(), kept.nan_to_num())
    assert found.dtype == torch.int64
    assert found.sum() == expected.sum()
    # float32 and float64 may place a value that lies on a bin's edge differently.
    assert np.abs(np.cumsum(found.numpy() - expected)).max() <= 2
