"""NaN and infinity: propagated as by AdamW, never into the codebook; skipped when asked."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from .ours import BITS, advance, every_option, noise, ours, parameter
from .published import Published, normalised, quantiser

bad_values = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
quantized = pytest.mark.parametrize("bits", [8, 4])
second_moments = pytest.mark.parametrize("second_moment", ["factored", "block", "paper", "peak"])


def spoiled(value: float, seed: int = 0) -> Tensor:
    gradient = noise(1, 64, 64, seed=seed)[0]
    gradient[3, 7] = value
    return gradient


def finite_state(state: Mapping[str, Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in state.values())


@bad_values
def test_published_codebook_and_state_are_poisoned_for_good(value: float) -> None:
    assert quantiser(normalised(spoiled(value), 64)).isnan().all()
    param = parameter(64, 64)
    optimizer = Published(param, quantiser(normalised(noise(1, 64, 64)[0], 64)), 64)
    for gradient in [spoiled(value), *noise(5, 64, 64)]:
        advance(optimizer, param, gradient)
    assert not optimizer.second_moment.isfinite().all()
    assert not optimizer.scale.isfinite().all()


@bad_values
@quantized
@second_moments
def test_our_codebook_comes_from_finite_values(second_moment: str, bits: int, value: float) -> None:
    """Another parameter is finite in that step: it alone forms the codebook, and it moves."""
    bad, good = parameter(64, 64), parameter(64, 64)
    optimizer = ours([bad, good], second_moment, bits)
    bad.grad = spoiled(value)
    for gradient in noise(3, 64, 64, seed=1):
        advance(optimizer, good, gradient)
        assert optimizer.state[good]["codebook"].isfinite().all()
    codebook = optimizer.state[good]["codebook"]
    assert len(codebook.unique()) > 0.9 * 2**bits
    assert finite_state(optimizer.state[good])
    assert good.isfinite().all()
    assert good.any()
    assert not bad[3, 7].isfinite()


@bad_values
@quantized
@second_moments
def test_our_codebook_is_learned_later(second_moment: str, bits: int, value: float) -> None:
    """All of the first gradient is not finite: the next finite one forms the codebook."""
    param, direct = parameter(64, 64), parameter(64, 64)
    late, plain = (ours([p], second_moment, bits) for p in (param, direct))
    advance(late, param, torch.full((64, 64), value))
    assert not param.isfinite().any()
    if "codebook" in late.state[param]:
        assert not late.state[param]["codebook"].any()
    gradient = noise(1, 64, 64)[0]
    advance(late, param, gradient)
    advance(plain, direct, gradient)
    assert torch.equal(late.state[param]["codebook"], plain.state[direct]["codebook"])


@bad_values
@every_option
def test_a_non_finite_element_reaches_its_parameter_as_with_adamw(
    second_moment: str, bits: int, value: float
) -> None:
    mine, reference = parameter(64, 64), parameter(64, 64)
    optimizer = ours([mine], second_moment, bits)
    adamw = torch.optim.AdamW([reference], weight_decay=0.0)
    for gradient in [noise(1, 64, 64)[0], spoiled(value, seed=1)]:
        advance(optimizer, mine, gradient)
        advance(adamw, reference, gradient)
    assert not reference[3, 7].isfinite()
    assert not mine[3, 7].isfinite()


@bad_values
@every_option
def test_skipping_leaves_no_trace_and_counts(second_moment: str, bits: int, value: float) -> None:
    """First, in the middle and twice: then bit for bit the run without these steps."""
    params, directs = ([parameter(64, 64), parameter(40)] for _ in range(2))
    skipping = ours(params, second_moment, bits, skip_nonfinite=True, weight_decay=0.1)
    plain = ours(directs, second_moment, bits, weight_decay=0.1)
    for number in range(4):
        if number != 1:
            before = [param.detach().clone() for param in params]
            params[1].grad = torch.ones(40)
            advance(skipping, params[0], spoiled(value, seed=number))
            assert all(map(torch.equal, params, before))
        gradient, small = noise(1, 64, 64, seed=number)[0], noise(1, 40, seed=number)[0]
        for optimizer, (matrix, vector) in ((skipping, params), (plain, directs)):
            vector.grad = small
            advance(optimizer, matrix, gradient)
    assert skipping.skipped_steps.dtype == torch.int64
    assert skipping.skipped_steps.device == params[0].device
    assert skipping.skipped_steps == 3
    assert plain.skipped_steps == 0
    for mine, direct in zip(params, directs, strict=True):
        assert torch.equal(mine, direct)
        for name, stored in skipping.state[mine].items():
            assert torch.equal(stored, plain.state[direct][name]), name


@pytest.mark.parametrize("bits", BITS)
def test_a_finite_gradient_whose_sum_is_not_is_not_skipped(bits: int) -> None:
    """Finite is asked of elements: float32's largest values are finite, their sums are not."""
    param = parameter(64, 64)
    optimizer = ours([param], "factored", bits, skip_nonfinite=True)
    advance(optimizer, param, torch.full((64, 64), torch.finfo(torch.float32).max))
    assert optimizer.skipped_steps == 0


def test_grad_scaler_skips_an_overflow_and_goes_on() -> None:
    """Bit for bit the run without the overflowed step, at half the scale."""
    mine, direct = parameter(64, 64), parameter(64, 64)
    optimizer, plain = (ours([p], "factored", 8) for p in (mine, direct))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for number, factor in enumerate([1.0, math.inf, 1.0]):
        gradient = noise(1, 64, 64, seed=number)[0]
        loss = (mine * gradient * factor).nansum() if factor == 1 else (mine + 1).sum() * factor
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if factor == 1:
            advance(plain, direct, gradient)
    assert scaler.get_scale() == 2.0
    assert torch.equal(mine, direct)
    assert isinstance(mine, nn.Parameter)
    assert finite_state(optimizer.state[mine])
