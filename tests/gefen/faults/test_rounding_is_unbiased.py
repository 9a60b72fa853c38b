"""Stochastic rounding through the public interface: the stored first moment is right on average."""

import copy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gefen import Gefen

from .ours import advance, noise, ours, parameter
from .published import Published, normalised, quantiser

ROWS, COLUMNS = 512, 64
BETA1 = 0.9
quantized = pytest.mark.parametrize("bits", [8, 4])
second_moments = pytest.mark.parametrize("second_moment", ["factored", "block"])


def codes(state: dict[str, Tensor]) -> Tensor:
    """The codes of the state (rows, columns), two to a byte unpacked, the low half first."""
    index = state["index"]
    if len(state["codebook"]) == 16:
        index = torch.stack([index & 15, index >> 4], dim=-1).flatten(-2)
    return index.long()


def stored_moment(optimizer: Gefen, param: nn.Parameter) -> tuple[Tensor, Tensor]:
    """The first moment of the state, float64, and the largest step between its values."""
    state = optimizer.state[param]
    levels = state["codebook"].double()
    groups = state["scale"].double().repeat_interleave(COLUMNS // state["scale"].shape[1], 1)
    unit = groups * state["column_mean"].double().sqrt() if "column_mean" in state else groups
    return levels[codes(state)] * unit, levels.diff().max() * unit.amax(0)


def biased_columns(stored: Tensor, spacing: Tensor, exact: Tensor) -> int:
    """How many columns' means over the rows differ from the exact value by more than chance.

    Rows have equal gradients and independent rounding. Six standard errors, and a term for
    probabilities so small that no row may have shown them.
    """
    error = (stored.mean(0) - exact).abs()
    allowed = 6 * stored.std(0) / ROWS**0.5 + 20 * spacing / ROWS
    return int((error > allowed).sum())


def gradients(seed: int, steps: int) -> tuple[Tensor, Tensor]:
    """Rows with the same gradients (steps, ROWS, COLUMNS), and their exact first moment.

    Columns have scales over three orders of magnitude; in the last steps half of them are zero.
    """
    scale = torch.logspace(-3, 0, COLUMNS)[torch.randperm(COLUMNS)]
    bank = noise(steps, 1, COLUMNS, seed=seed) * scale
    bank[steps // 2 + 1 :, :, ::2] = 0
    exact = torch.zeros(COLUMNS, dtype=torch.float64)
    for gradient in bank:
        exact = BETA1 * exact + (1 - BETA1) * gradient[0].double()
    return bank.expand(-1, ROWS, -1).contiguous(), exact


@cache
def learned(bits: int, second_moment: str) -> tuple[Gefen, nn.Parameter]:
    """An optimizer whose codebook was learned on noise, and a parameter it has not stepped."""
    other, param = parameter(64, 64), parameter(ROWS, COLUMNS)
    optimizer = ours([other, param], second_moment, bits)
    advance(optimizer, other, noise(1, 64, 64)[0])
    other.grad = None
    return optimizer, param


@quantized
@second_moments
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 8))
def test_the_mean_over_elements_is_the_exact_moment(
    second_moment: str, bits: int, seed: int, steps: int
) -> None:
    optimizer, param = copy.deepcopy(learned(bits, second_moment))
    bank, exact = gradients(seed, steps)
    for gradient in bank:
        advance(optimizer, param, gradient)
    assert biased_columns(*stored_moment(optimizer, param), exact) == 0


def test_published_rounding_is_biased() -> None:
    bank, exact = gradients(0, 8)
    param = parameter(ROWS, COLUMNS)
    levels = quantiser(normalised(noise(1, 64, 64)[0], 64), 16)
    optimizer = Published(param, levels, COLUMNS)
    for gradient in bank:
        advance(optimizer, param, gradient)
    spacing = levels.diff().max() * optimizer.scale.amax()
    assert biased_columns(optimizer.moment.double(), spacing.double(), exact) > COLUMNS // 4


def test_over_time_our_error_averages_out_and_the_published_does_not() -> None:
    """A constant gradient: nearest rounding stalls short of it, each element at its own place.

    The mean of nine times as many values is three times as near, up to their correlation over
    1 / (1 - beta1) steps.
    """
    gradient = noise(1, 64, COLUMNS)[0].clamp(-2, 2)
    gradient[:, 0] = 2  # so that the scale stays the same
    mine, other = parameter(64, COLUMNS), parameter(64, COLUMNS)
    optimizer = ours([mine], "block", 4)
    levels = quantiser(normalised(noise(1, 64, 64)[0], 64), 16)
    published = Published(other, levels, COLUMNS)
    stored: tuple[list[Tensor], list[Tensor]] = ([], [])
    for _ in range(325):
        advance(optimizer, mine, gradient)
        advance(published, other, gradient)
        stored[0].append(stored_moment(optimizer, mine)[0])
        stored[1].append(published.moment.double())

    def error(moments: list[Tensor], count: int) -> float:
        mean = torch.stack(moments[100 : 100 + count]).mean(0)
        return (mean - gradient).square().mean().sqrt().item()

    assert error(stored[0], 225) < 0.5 * error(stored[0], 25)
    assert error(stored[1], 225) > 0.95 * error(stored[1], 25)
