"""The nearest code against brute force, at every threshold and its neighbouring floats."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gefen.codebook import BINS, optimal_levels
from gefen.codes import Codes, padded_codebook
from gefen.updates.reference import nearest_codes
from gefen.updates.scratch import Scratch

DTYPES = (torch.float32, torch.float64)


def codes_of(values: Tensor, codebook: Tensor) -> Tensor:
    codes = Codes.build(codebook, torch.device("cpu"), values.dtype)
    buffers = Scratch(torch.device("cpu")).buffers((1, 1, len(values)), values.dtype)
    buffers.moment.view(-1).copy_(values)
    return nearest_codes(codes, buffers).clone()


def brute_force(values: Tensor, codebook: Tensor) -> Tensor:
    """Smallest code at the least distance, in extended precision."""
    levels = codebook.numpy().astype(np.longdouble)
    distance = np.abs(values.numpy().astype(np.longdouble)[:, None] - levels[None, :])
    return torch.from_numpy(distance.argmin(axis=1).astype(np.uint8))


def learned(seed: int, spread: float, samples: int) -> Tensor:
    rng = np.random.default_rng(seed)
    values = np.clip(rng.normal(0, spread, samples), -1, 1)
    return padded_codebook(optimal_levels(np.histogram(values, BINS, (-1, 1))[0]))


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
    codebook = padded_codebook(optimal_levels(weights))
    gaps = codebook.double().diff()
    assert gaps[gaps > 0].min() < 1.01 / BINS
    for dtype in DTYPES:
        middle = ((codebook[1:].double() + codebook[:-1].double()) / 2).to(dtype)
        values = neighbourhood(middle)
        assert torch.equal(codes_of(values, codebook), brute_force(values, codebook))


def test_unused_codes_are_never_emitted() -> None:
    codebook = padded_codebook(np.array([-1, -0.5, 0, 0.25, 1], dtype=np.float32))
    assert codes_of(torch.linspace(-1, 1, 10001), codebook).unique().tolist() == [0, 1, 2, 3, 4]


def test_values_that_are_not_numbers_get_a_valid_code() -> None:
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0])
    assert codes_of(values, learned(0, 0.2, 1000)).dtype == torch.uint8


def test_levels_too_close_are_refused() -> None:
    codebook = padded_codebook(np.array([-1, 0, 1e-6, 2e-6, 1], dtype=np.float32))
    with pytest.raises(ValueError, match="closer together"):
        Codes.build(codebook, torch.device("cpu"), torch.float32)
