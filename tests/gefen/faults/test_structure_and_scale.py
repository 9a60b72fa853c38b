"""Gradients without structure, of any scale, or all zero at first: nothing depends on them."""

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from gefen import state_bytes
from gefen.block_rules import block_length, group_length
from harness.research.robustness.scenarios import Make, Stepper

from .ours import advance, every_option, noise, ours, parameter
from .published import Published, normalised, quantiser

shape_only = pytest.mark.parametrize("second_moment", ["factored", "block"])
every_bits = pytest.mark.parametrize("bits", [8, 4, 32])


def structured(count: int) -> Tensor:
    """Gradients whose rows differ in scale, in which `peak` finds the row length."""
    return noise(count, 64, 64) * torch.logspace(-2, 0, 64)[torch.randperm(64), None]


def published_bytes(gradient: Tensor) -> float:
    """Bytes of state for each parameter with the rule `peak`."""
    count, block = gradient.numel(), block_length(gradient, "peak")
    return 1 + 4 / block + 4 / group_length(count, block)


def our_bytes(gradients: Tensor, second_moment: str, bits: int) -> int:
    param = parameter(64, 64)
    optimizer = ours([param], second_moment, bits)
    for gradient in gradients:
        advance(optimizer, param, gradient)
    return sum(value.numel() * value.element_size() for value in optimizer.state[param].values())


def test_published_state_grows_fivefold_without_structure() -> None:
    assert published_bytes(structured(1)[0]) < 1.2
    assert published_bytes(noise(1, 64, 64)[0]) > 5


@shape_only
@every_bits
def test_our_state_has_its_closed_form_with_and_without_structure(
    second_moment: str, bits: int
) -> None:
    expected = state_bytes([(64, 64)], first_moment_bits=bits, second_moment=second_moment)
    assert our_bytes(structured(2), second_moment, bits) == expected
    assert our_bytes(noise(2, 64, 64), second_moment, bits) == expected


INPUTS, HIDDEN = 32, 64


def final_loss(make: Callable[[list[nn.Parameter]], Sequence[Stepper]], steps: int = 100) -> float:
    """Loss of a small network on a fixed random regression, full batch, learning rate .01."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(128, INPUTS, generator=generator)
    targets = (inputs @ torch.randn(INPUTS, 16, generator=generator) / INPUTS**0.5).sin()
    weights = [
        nn.Parameter(torch.randn(INPUTS, HIDDEN, generator=generator) / INPUTS**0.5),
        nn.Parameter(torch.randn(HIDDEN, 16, generator=generator) / HIDDEN**0.5),
    ]
    optimizers: Sequence[Stepper] = []
    loss = torch.empty(())
    for _ in range(steps):
        for weight in weights:
            weight.grad = None
        loss = ((inputs @ weights[0]).tanh() @ weights[1] - targets).square().mean()
        loss.backward()
        optimizers = optimizers or make(weights)
        for optimizer in optimizers:
            optimizer.step()
    return loss.item()


def published_elementwise(weights: list[nn.Parameter]) -> list[Published]:
    """Blocks of one, as for gradients without structure: every normalised value is -1 or 1."""
    grads = [weight.grad for weight in weights if weight.grad is not None]
    levels = quantiser(torch.cat([normalised(grad, 1) for grad in grads]))
    return [
        Published(weight, levels, 1, group=group_length(weight.numel(), 1), lr=1e-2)
        for weight in weights
    ]


@cache
def adamw_loss() -> float:
    return final_loss(lambda weights: [torch.optim.AdamW(weights, lr=1e-2, weight_decay=0)])


def test_published_codebook_degenerates_on_blocks_of_one() -> None:
    levels = quantiser(normalised(noise(1, 64, 64)[0], 1))
    assert levels.abs().min() > 0.99
    assert not final_loss(published_elementwise) < 10 * adamw_loss()


@every_option
def test_our_codebook_does_not_degenerate(second_moment: str, bits: int) -> None:
    """Nor does it with `paper` and `peak`, whose second moment is per element here."""
    loss = final_loss(
        lambda weights: [ours(weights, second_moment, bits, lr=1e-2, min_quantized_size=1)]
    )
    assert loss < 3 * adamw_loss()
    if bits < 32:
        param = parameter(64, 64)
        optimizer = ours([param], second_moment, bits)
        advance(optimizer, param, noise(1, 64, 64)[0])
        assert len(optimizer.state[param]["codebook"].unique()) > 0.9 * 2**bits


def scaled_updates(make: Make, bank: Tensor, power: int) -> Tensor:
    param = parameter(*bank.shape[1:])
    optimizer: Stepper | None = None
    for gradient in bank * 2.0**power:
        param.grad = gradient
        optimizer = optimizer or make(param)
        optimizer.step()
    return param.detach().clone()


def rows_and_halves() -> Tensor:
    """Rows differ in scale, and half of the half-rows are a thousandth of the others."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 1, generator=generator)
    halves = torch.randn(64, 2, generator=generator).repeat_interleave(24, 1)
    return noise(3, 64, 48) * (0.5 * rows).exp() * torch.where(halves < 0, 1e-3, 1.0)


def test_published_updates_depend_on_the_gradients_scale() -> None:
    """`peak` chooses other blocks for gradients 2^-24 times as large."""

    def make(param: nn.Parameter) -> Published:
        assert param.grad is not None
        block = block_length(param.grad, "peak")
        levels = quantiser(normalised(param.grad, block))
        return Published(param, levels, block, eps=0.0)

    bank = rows_and_halves()
    assert block_length(bank[0], "peak") != block_length(bank[0] * 2.0**-24, "peak")
    at_one, small = (scaled_updates(make, bank, power) for power in (0, -24))
    assert (at_one - small).abs().max() > 0.1 * at_one.abs().max()


@shape_only
@every_bits
@pytest.mark.parametrize("power", [-20, -1, 7, 20])
def test_our_updates_do_not_depend_on_the_gradients_scale(
    second_moment: str, bits: int, power: int
) -> None:
    """Bit for bit, with eps = 0."""

    def updates(power: int) -> Tensor:
        return scaled_updates(
            lambda param: ours([param], second_moment, bits, eps=0.0, min_quantized_size=1),
            rows_and_halves(),
            power,
        )

    assert torch.equal(updates(power), updates(0))


def test_published_decides_on_zeros() -> None:
    """Blocks of one, and a codebook with nothing between 0 and the ends."""
    zeros = torch.zeros(64, 64)
    assert block_length(zeros, "peak") == block_length(zeros, "paper") == 1
    later = normalised(noise(1, 64, 64)[0], 64)
    learned_on_zeros = quantiser(normalised(zeros, 64))
    middle = (learned_on_zeros[1:] + learned_on_zeros[:-1]) / 2
    rounded = learned_on_zeros[torch.bucketize(later, middle)]
    assert (rounded - later).square().mean() > 0.3 * later.square().mean()


@every_option
def test_ours_waits_for_a_gradient(second_moment: str, bits: int) -> None:
    """Zero gradients at first (as LoRA's A has) leave no trace: then bit for bit as without."""
    late, plain = parameter(64, 64), parameter(64, 64)
    waiting, direct = ours([late], second_moment, bits), ours([plain], second_moment, bits)
    for _ in range(3):
        advance(waiting, late, torch.zeros(64, 64))
        assert not late.any()
        if bits < 32 and "codebook" in waiting.state[late]:
            assert not waiting.state[late]["codebook"].any()
            assert waiting.state[late]["step"] == 0
    for gradient in structured(4):
        advance(waiting, late, gradient)
        advance(direct, plain, gradient)
    if bits < 32:
        assert torch.equal(late, plain)
        for name, value in waiting.state[late].items():
            assert torch.equal(value, direct.state[plain][name]), name
    assert late.any()
