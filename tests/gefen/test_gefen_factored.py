"""The factored form with stochastic rounding against its formulas, in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gefen import Gefen

from .definitions import (
    BETA1,
    BETA2,
    DECAY,
    EPS,
    LR,
    SHAPES,
    Array,
    equal_slices,
    gradients,
    levels_from,
    matrices,
)


def unpacked(index: Array, shape: tuple[int, ...], bits: int) -> NDArray[np.int64]:
    """The codes of (experts, rows, columns); of two in a byte the first is the low half."""
    codes = index.astype(np.int64).reshape(*shape[:2], -1)
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*shape[:2], -1)
    return codes[..., : shape[2]]


class Oracle:
    """One step from the optimizer's own state, in float64."""

    def __init__(
        self, param: Tensor, state: dict[str, Tensor], groups: list[slice], bits: int
    ) -> None:
        self.param = matrices(param.detach().double().numpy().copy())
        experts, rows, columns = self.param.shape
        self.groups = groups
        levels = np.unique(state["codebook"].double().numpy())
        codes = unpacked(state["index"].numpy(), self.param.shape, bits)
        scale = state["scale"].double().numpy().reshape(experts, rows, -1)
        self.scale = np.concatenate(
            [np.repeat(scale[..., [k]], g.stop - g.start, -1) for k, g in enumerate(groups)], -1
        )
        self.rows = state["row_mean"].double().numpy().reshape(experts, rows).copy()
        self.columns = state["column_mean"].double().numpy().reshape(experts, columns).copy()
        level = levels[np.minimum(codes, len(levels) - 1)]
        self.moment = level * self.scale * np.sqrt(self.columns)[:, None, :]

    def step(self, grad: Tensor, number: int) -> Array:
        """Advance everything; return the moment over its columns' factor and its group's scale."""
        g = matrices(grad.double().numpy())
        self.rows = BETA2 * self.rows + (1 - BETA2) * (g**2).mean(2)
        self.columns = BETA2 * self.columns + (1 - BETA2) * (g**2).mean(1)
        second = self.rows[:, :, None] * self.columns[:, None, :]
        second = second / self.columns.mean(1)[:, None, None] / (1 - BETA2**number)
        self.moment = BETA1 * self.moment + (1 - BETA1) * g
        self.param *= 1 - LR * DECAY
        update = self.moment / (1 - BETA1**number) / (np.sqrt(second) + EPS)
        self.param -= LR * np.clip(update, -1, 1)
        factor = np.sqrt(self.columns)[:, None, :]
        relative = np.divide(self.moment, factor, out=np.zeros_like(factor * g), where=factor > 0)
        for group in self.groups:
            largest = np.abs(relative[..., group]).max(-1, keepdims=True)
            self.scale[..., group] = largest
            relative[..., group] /= np.where(largest == 0, 1, largest)
        return relative


def zero_state(param: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state before the first step, with the codebook that the first step learned."""
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    return {**zeros, "codebook": state["codebook"]}


@settings(max_examples=40, deadline=None)
@given(
    shape=SHAPES,
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    bits=st.sampled_from([4, 8]),
    group_size=st.integers(2, 50),
    seed=st.integers(0, 10**6),
)
def test_one_step_at_a_time(
    shape: tuple[int, ...], dtype: torch.dtype, bits: int, group_size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    param = torch.from_numpy(rng.normal(size=shape)).to(dtype).requires_grad_()
    optimizer = Gefen(
        [param],
        lr=LR,
        betas=(BETA1, BETA2),
        eps=EPS,
        weight_decay=DECAY,
        first_moment_bits=bits,
        second_moment="factored",
        group_size=group_size,
        min_quantized_size=1,
    )
    columns = matrices(param.detach().double().numpy()).shape[2]
    groups = equal_slices(columns, group_size, even=bits == 4)
    previous: dict[str, Tensor] = {}
    for number, grad in enumerate(gradients(shape, 4, seed), start=1):
        param.grad = grad.to(dtype)
        if not param.grad.any():
            return
        before = param.detach().clone()
        optimizer.step()
        state = optimizer.state[param]
        oracle = Oracle(before, previous or zero_state(param, state), groups, bits)
        noise = 2e-6 * (BETA1 * np.abs(oracle.moment) + np.abs(matrices(grad.double().numpy())))
        relative = oracle.step(param.grad, number)
        check(param, state, oracle, relative, noise, bits)
        previous = {name: value.clone() for name, value in state.items()}


def check(
    param: Tensor,
    state: dict[str, Tensor],
    oracle: Oracle,
    relative: Array,
    noise: Array,
    bits: int,
) -> None:
    shape = oracle.rows.shape
    np.testing.assert_allclose(state["row_mean"].numpy().reshape(shape), oracle.rows, rtol=3e-6)
    columns = state["column_mean"].numpy().reshape(oracle.columns.shape)
    np.testing.assert_allclose(columns, oracle.columns, rtol=3e-6)
    first = [g.start for g in oracle.groups]
    scale = state["scale"].numpy().reshape(*shape, -1)
    # The two terms of a moment can cancel; what float32 leaves is relative to their sizes.
    factor = np.sqrt(oracle.columns)[:, None, :]
    slack = np.divide(noise, factor, out=np.zeros_like(noise), where=factor > 0)
    widest = np.stack([slack[..., g].max(-1) for g in oracle.groups], -1)
    wanted = oracle.scale[..., first]
    assert (np.abs(scale - wanted) <= widest + 3e-6 * wanted).all()
    error = np.abs(matrices(param.detach().double().numpy()) - oracle.param)
    spacing = torch.finfo(param.dtype).eps if param.dtype == torch.bfloat16 else 3e-6
    assert (error <= 3e-6 + spacing * np.abs(oracle.param)).all()
    levels = np.unique(state["codebook"].double().numpy())
    codes = unpacked(state["index"].numpy(), relative.shape, bits)
    below, above = levels[np.maximum(codes - 1, 0)], levels[np.minimum(codes + 1, len(levels) - 1)]
    allowed = slack / np.where(oracle.scale == 0, 1, oracle.scale) + 1e-5
    assert (relative >= below - allowed).all()
    assert (relative <= above + allowed).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_unbiased(bits: int) -> None:
    """The mean error of a million codes, in standard errors, and that it is rounding at all."""
    param = torch.zeros(1000, 1000, requires_grad=True)
    generator = torch.Generator().manual_seed(5)
    param.grad = torch.randn(1000, 1000, generator=generator)
    optimizer = Gefen([param], lr=0.0, first_moment_bits=bits, second_moment="factored")
    optimizer.step()
    state = optimizer.state[param]
    groups = equal_slices(1000, 64 if bits == 4 else 2048, even=bits == 4)
    oracle = Oracle(param, {**state}, groups, bits)
    wanted = 0.1 * matrices(param.grad.double().numpy())
    # Of the state after the step: the factor it was divided by is the one stored.
    error = oracle.moment - wanted
    spread = error.std()
    assert 1e-4 < spread / wanted.std() < 0.2
    for part in (error, error[:, ::7], error[..., ::7], error * np.sign(wanted)):
        assert abs(part.mean()) < 5 * part.std() / math.sqrt(part.size)


def test_codebook_from_the_definition() -> None:
    first, second = gradients((50, 70), 2, 3)
    params = [torch.zeros(50, 70, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    params[0].grad = first
    options = {"group_size": 30, "second_moment": "factored", "min_quantized_size": 1}
    optimizer = Gefen(params, **options)
    optimizer.step()
    codebook = optimizer.state[params[0]]["codebook"].double().numpy()
    grad = first.numpy()
    factor = np.sqrt((grad**2).mean(0))
    relative = np.divide(grad, factor, out=np.zeros_like(grad), where=factor > 0)
    expected = levels_from(relative, equal_slices(70, 30))
    np.testing.assert_allclose(np.unique(codebook), expected, atol=3e-5)
    params[1].grad = second  # learned once, kept for a parameter that comes later
    optimizer.step()
    assert (optimizer.state[params[1]]["codebook"].double().numpy() == codebook).all()


def test_rank_one_squares_are_adamw() -> None:
    """Where g^2 is a product of a row and a column factor, v is exact: float32 moments match."""
    rows = torch.rand(60, 1, generator=torch.Generator().manual_seed(0)) + 0.1
    columns = torch.rand(1, 80, generator=torch.Generator().manual_seed(1)) + 0.1
    ours, theirs = (torch.ones(60, 80, requires_grad=True) for _ in range(2))
    optimizers = (
        Gefen([ours], lr=0.01, first_moment_bits=32, second_moment="factored"),
        torch.optim.AdamW([theirs], lr=0.01),
    )
    for step in range(20):
        sign = torch.randn(60, 80, generator=torch.Generator().manual_seed(step)).sign()
        for param, optimizer in zip((ours, theirs), optimizers, strict=True):
            param.grad = rows * columns * sign * (1 + step % 3)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)
    assert not torch.equal(ours, torch.ones(60, 80))
