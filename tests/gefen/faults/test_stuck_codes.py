"""Stuck codes: nearest rounding keeps moving what has no gradient; columns of unequal scale."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn

from gefen import Gefen
from harness.research.robustness.scenarios import (
    LR,
    Make,
    movement_after_stop,
    noise,
    update_rms,
    updates,
)

from .ours import BITS, every_option
from .published import Published, normalised, quantiser

SHAPE = (32, 128)
BETAS = [(0.9, 0.95), (0.9, 0.999)]
# An experiment ends once nothing moves any more, after 150 to 400 steps;
# harness.research.robustness allows 10,000 for its figures, with the same result.
STEPS = 2000
LIMIT = 1.1
both_betas = pytest.mark.parametrize("betas", BETAS, ids=["0.95", "0.999"])


def adamw(betas: tuple[float, float]) -> Make:
    return lambda param: torch.optim.AdamW([param], lr=LR, betas=betas, weight_decay=0)


def gefen(second_moment: str, bits: int, betas: tuple[float, float]) -> Make:
    return lambda param: Gefen(
        [param],
        lr=LR,
        betas=betas,
        weight_decay=0,
        second_moment=second_moment,
        first_moment_bits=bits,
    )


def published(block: int, group: int, bits: int, factored: bool) -> Callable[..., Make]:
    first = next(noise(1, SHAPE))
    levels = quantiser(normalised(first, group), 1 << bits)

    def for_betas(betas: tuple[float, float]) -> Make:
        return lambda param: Published(
            param, levels, block, group=group, factored=factored, betas=betas, lr=LR
        )

    return for_betas


@cache
def adamw_movement(betas: tuple[float, float]) -> float:
    return movement_after_stop(adamw(betas), STEPS, SHAPE)


def adamw_movement_in_closed_form(betas: tuple[float, float]) -> float:
    """Of elements whose moments at the stop are known: sum of m b1^t / sqrt(v b2^t), corrected."""
    moments = [torch.zeros(SHAPE, dtype=torch.float64) for _ in betas]
    for gradient in noise(50, SHAPE):
        for order, (moment, beta) in enumerate(zip(moments, betas, strict=True), start=1):
            moment.mul_(beta).add_((1 - beta) * gradient.double() ** order)
    first, second = (moment[:, 3::16] for moment in moments)
    path = torch.zeros_like(first)
    for later in range(1, STEPS + 1):
        mean = first * betas[0] ** later / (1 - betas[0] ** (50 + later))
        square = second * betas[1] ** later / (1 - betas[1] ** (50 + later))
        path += mean.abs() / (square.sqrt() + 1e-8)
    return path.mean().item()


@both_betas
def test_the_experiment_gives_adamws_closed_form(betas: tuple[float, float]) -> None:
    assert adamw_movement(betas) == pytest.approx(adamw_movement_in_closed_form(betas), rel=1e-4)


@both_betas
@pytest.mark.parametrize(
    ("block", "group", "bits", "factored", "steps", "at_least"),
    [
        (128, 128, 8, False, 1000, 1.2),  # drifts for ever: it only grows with the steps
        (1, 128, 8, False, 300, 1.2),
        (128, 128, 8, True, 300, 1.2),
        (64, 64, 4, False, 300, 3),
        (64, 64, 4, True, 300, 3),
    ],
    ids=["row", "element", "factored", "row-4", "factored-4"],
)
def test_published_moves_on_without_a_gradient(
    block: int,
    group: int,
    bits: int,
    factored: bool,
    steps: int,
    at_least: float,
    betas: tuple[float, float],
) -> None:
    make = published(block, group, bits, factored)(betas)
    moved = movement_after_stop(make, steps, SHAPE)
    assert moved / adamw_movement(betas) > at_least > LIMIT


@both_betas
@every_option
def test_without_a_gradient_ours_stops_as_adamw(
    second_moment: str, bits: int, betas: tuple[float, float]
) -> None:
    moved = movement_after_stop(gefen(second_moment, bits, betas), STEPS, SHAPE)
    assert moved / adamw_movement(betas) <= LIMIT


@pytest.mark.parametrize("second_moment", ["factored", "block"])
@pytest.mark.parametrize("bits", [8, 4])
def test_codes_without_a_gradient_become_zero_and_stay(second_moment: str, bits: int) -> None:
    """Not merely small: the update is exactly zero, which no later step can leave."""
    columns = slice(None, None, 2)

    def gradients() -> list[torch.Tensor]:
        bank = list(noise(250, (32, 128)))
        for gradient in bank[50:]:
            gradient[:, columns] = 0
        return bank

    make = gefen(second_moment, bits, (0.9, 0.95))
    *_, last = updates(make, gradients(), torch.float32)
    assert not last[:, columns].any()
    assert last[:, 1::2].all(dim=0).any()


@cache
def adamw_rms(betas: tuple[float, float]) -> list[float]:
    return update_rms(adamw(betas))


def rms_ratios(make: Make, betas: tuple[float, float]) -> list[float]:
    reference = adamw_rms(betas)
    return [rms / exact for rms, exact in zip(update_rms(make), reference, strict=True)]


def test_published_starves_columns_below_their_row() -> None:
    """Row-shared v: double steps for the large columns, a fiftieth for those at .01."""

    def make(param: nn.Parameter) -> Published:
        first = next(noise(1, (32, 192))) * torch.tensor([1.0, 0.1, 0.01]).repeat(64)
        levels = quantiser(normalised(first, 192))
        return Published(param, levels, 192, betas=(0.9, 0.95), lr=LR)

    large, medium, small = rms_ratios(make, (0.9, 0.95))
    assert large > 1.5
    assert medium < 0.5
    assert small < 0.05


@both_betas
@pytest.mark.parametrize("bits", BITS)
def test_factored_columns_step_as_adamws(bits: int, betas: tuple[float, float]) -> None:
    for ratio in rms_ratios(gefen("factored", bits, betas), betas):
        assert 0.9 < ratio < 1.15


@pytest.mark.parametrize("bits", BITS)
def test_block_form_starves_small_columns_by_construction(bits: int) -> None:
    """A recorded limit, not a goal: one second moment for a row of columns at 1, .1 and .01.

    With root mean square .58 of the row the steps are 1.73, .173 and .0173 of AdamW's; at 4 bits
    the noise of rounding adds to the small ones.
    """
    large, medium, small = rms_ratios(gefen("block", bits, (0.9, 0.95)), (0.9, 0.95))
    assert large == pytest.approx(3**0.5, rel=0.05)
    assert 0.17 < medium < (0.2 if bits > 4 else 0.35)
    assert 0.017 < small < (0.02 if bits > 4 else 0.15)
