"""Codes against brute force, at every threshold and its neighbouring floats."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gefen.codebook import BINS, optimal_levels
from gefen.codes import Codes, pack_nibbles, padded_codebook, unpack_nibbles
from gefen.updates.first_moment import find_codes
from gefen.updates.scratch import Scratch

DTYPES = (torch.float32, torch.float64)


def codes_of(values: Tensor, codebook: Tensor, random: Tensor | None = None) -> Tensor:
    """Nearest codes, or stochastic ones with these random integers in [0, 2^24)."""
    stochastic = random is not None
    codes = Codes.build(codebook, torch.device("cpu"), values.dtype, stochastic=stochastic)
    buffers = Scratch(torch.device("cpu")).buffers((1, 1, len(values)), values.dtype)
    buffers.moment.view(-1).copy_(values)
    if random is not None:
        buffers.random.copy_(random)
    return find_codes(codes, buffers).clone()


def brute_force(values: Tensor, codebook: Tensor) -> Tensor:
    """Largest code at the least distance, in extended precision."""
    levels = np.unique(codebook.numpy()).astype(np.longdouble)
    distance = np.abs(values.numpy().astype(np.longdouble)[:, None] - levels[None, :])
    return torch.from_numpy((len(levels) - 1 - distance[:, ::-1].argmin(1)).astype(np.uint8))


def learned(seed: int, spread: float, samples: int, count: int = 256) -> Tensor:
    rng = np.random.default_rng(seed)
    values = np.clip(rng.normal(0, spread, samples), -1, 1)
    return padded_codebook(optimal_levels(np.histogram(values, BINS, (-1, 1))[0], count), count)


def neighbourhood(values: Tensor) -> Tensor:
    """The values with the three floats on either side of each."""
    found = [values]
    for end in (-2.0, 2.0):
        current = values
        for _ in range(3):
            current = torch.nextafter(current, torch.full_like(current, end))
            found.append(current)
    return torch.cat(found).clamp(-1, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 10**6), spread=st.floats(1e-4, 1), samples=st.sampled_from([3, 300, 10**5])
)
def test_nearest_code(dtype: torch.dtype, seed: int, spread: float, samples: int) -> None:
    codebook = learned(seed, spread, samples)
    middle = ((codebook[1:].double() + codebook[:-1].double()) / 2).to(dtype)
    grid = torch.linspace(-1, 1, 2 * BINS + 1, dtype=dtype)
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-30, 1.0, -1.0], dtype=dtype)
    uniform = torch.rand(500, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1
    edges = neighbourhood(torch.cat([middle, codebook.to(dtype), grid[seed % 7 :: 7]]))
    values = torch.cat([edges, special, uniform])
    assert torch.equal(codes_of(values, codebook), brute_force(values, codebook))


def test_narrowest_levels_a_histogram_can_give() -> None:
    """Every bin occupied near the fixed levels: thresholds there are closest together."""
    weights = np.zeros(BINS, dtype=np.int64)
    for start in (0, BINS // 2 - 20, BINS - 40):
        weights[start : start + 40] = 1000
    codebook = padded_codebook(optimal_levels(weights), 256)
    gaps = codebook.double().diff()
    assert gaps[gaps > 0].min() < 1.01 / BINS
    for dtype in DTYPES:
        middle = ((codebook[1:].double() + codebook[:-1].double()) / 2).to(dtype)
        values = neighbourhood(middle)
        assert torch.equal(codes_of(values, codebook), brute_force(values, codebook))


def test_unused_codes_are_never_emitted() -> None:
    codebook = padded_codebook(np.array([-1, -0.5, 0, 0.25, 1], dtype=np.float32), 256)
    assert codes_of(torch.linspace(-1, 1, 10001), codebook).unique().tolist() == [0, 1, 2, 3, 4]


def test_values_that_are_not_numbers_get_a_valid_code() -> None:
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0])
    codebook = learned(0, 0.2, 1000)
    assert codes_of(values, codebook)[-1] == int((codebook < 0).sum())
    assert codes_of(values, codebook, torch.zeros(4, dtype=torch.int32))[-1] == int(
        (codebook < 0).sum()
    )


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.floats(1e-4, 1), count=st.sampled_from([3, 16, 256]))
def test_stochastic_codes_bracket_the_value_with_its_probability(
    dtype: torch.dtype, seed: int, spread: float, count: int
) -> None:
    """The two neighbours, the upper one for just the random integers below 2^24 frac."""
    codebook = learned(seed, spread, 10**4, count)
    levels = np.unique(codebook.numpy()).astype(np.longdouble)
    own = torch.from_numpy(levels.astype(np.float64)).to(dtype)
    uniform = torch.rand(500, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1
    values = torch.cat([neighbourhood(own), uniform])
    exact = values.numpy().astype(np.longdouble)
    lower = np.searchsorted(levels, exact, side="right") - 1
    upper = np.minimum(lower + 1, len(levels) - 1)
    gap = np.where(upper > lower, levels[upper] - levels[lower], 1)
    frac = (exact - levels[lower]) / gap
    for random in (0, 1 << 23, (1 << 24) - 1, 123_456):
        chosen = codes_of(values, codebook, torch.full((len(values),), random, dtype=torch.int32))
        distance = np.abs(frac - random / 2**24) - 2**-21
        expected = np.where(frac > random / 2**24, upper, lower)
        sure = (distance > 0) | (frac == 0)
        assert sure.mean() > 0.5
        assert (chosen.numpy()[sure] == expected[sure]).all()
        assert ((chosen.numpy() == lower) | (chosen.numpy() == upper)).all()


@pytest.mark.parametrize("columns", [1, 2, 63, 64])
def test_two_codes_to_a_byte(columns: int) -> None:
    codes = torch.randint(16, (5, columns), dtype=torch.uint8)
    packed = torch.empty(5, -(-columns // 2), dtype=torch.uint8)
    pack_nibbles(codes, packed)
    found = torch.empty(5, columns, dtype=torch.int32)
    unpack_nibbles(packed, found)
    assert torch.equal(found, codes.int())
    assert packed[0, 0] == codes[0, 0] + (16 * codes[0, 1] if columns > 1 else 0)


def test_levels_too_close_are_refused() -> None:
    codebook = padded_codebook(np.array([-1, 0, 1e-6, 2e-6, 1], dtype=np.float32), 256)
    with pytest.raises(ValueError, match="closer together"):
        Codes.build(codebook, torch.device("cpu"), torch.float32, stochastic=False)
