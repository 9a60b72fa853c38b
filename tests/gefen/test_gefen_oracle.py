"""The block form, rounded to nearest, against a transcription in float64, block by block.

Nearest rounding makes both sides deterministic; test_gefen_factored.py has the default form.
"""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

import gefen.updates.scratch
from gefen import Gefen
from gefen.updates.rule import Rule

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


def rows_of(array: NDArray[Any]) -> NDArray[Any]:
    """All rows of a parameter, (rows, columns)."""
    stack = matrices(array)
    return stack.reshape(-1, stack.shape[2])


class NearestGefen(Gefen):
    """The deterministic variant that the harness compares with."""

    _rule = Rule(stochastic=False)


class Oracle:
    """State as float64 arrays; `scale` and `second` rounded to float32 where they are stored."""

    def __init__(self, param: Tensor, codebook: Array, block_size: int) -> None:
        self.param = rows_of(param.detach().double().numpy().copy())
        self.blocks = equal_slices(self.param.shape[1], block_size)
        self.codebook = codebook
        self.zero = int(np.flatnonzero(codebook == 0)[0])
        self.index = np.full(self.param.shape, self.zero)
        self.scale = np.zeros((len(self.param), len(self.blocks)))
        self.second = np.zeros_like(self.scale)
        self.steps = 0
        # Where a value lay so close to a threshold that float32 may choose the other code.
        self.ties = np.zeros(self.param.shape, dtype=bool)
        # What float32 may make of a moment: its two terms can cancel.
        self.noise = np.zeros_like(self.scale)

    def step(self, grad: Tensor) -> None:
        self.steps += 1
        g = rows_of(grad.double().numpy())
        self.param *= 1 - LR * DECAY
        self.ties[:] = False
        for row, (b, part) in itertools.product(range(len(g)), enumerate(self.blocks)):
            second = BETA2 * self.second[row, b] + (1 - BETA2) * np.mean(g[row, part] ** 2)
            moment = self.codebook[self.index[row, part]] * self.scale[row, b] * BETA1
            moment = moment + (1 - BETA1) * g[row, part]
            scale = float(np.float32(np.abs(moment).max()))
            ratio = moment / scale if scale else 0 * moment
            distance = np.abs(ratio[:, None] - self.codebook[None, :])
            index = distance.argmin(axis=1)
            nearest = np.sort(distance, axis=1)
            size = BETA1 * self.scale[row, b] + (1 - BETA1) * np.abs(g[row, part]).max()
            self.noise[row, b] = 1e-6 * size
            self.ties[row, part] = (nearest[:, 1] - nearest[:, 0]) * scale < 2 * self.noise[row, b]
            self.second[row, b] = np.float32(second)
            self.scale[row, b] = scale
            self.index[row, part] = index
            bias1, bias2 = 1 - BETA1**self.steps, 1 - BETA2**self.steps
            denominator = math.sqrt(self.second[row, b]) / math.sqrt(bias2) + EPS
            self.param[row, part] -= LR * moment / bias1 / denominator

    def follow(self, param: Tensor, state: dict[str, Tensor]) -> None:
        """Continue from the optimizer's own state, so that a tie does not spread."""
        self.param = rows_of(param.detach().double().numpy().copy())
        self.index = rows_of(state["index"].numpy()).astype(int)
        self.scale = state["scale"].double().numpy().reshape(self.scale.shape).copy()
        self.second = state["second_moment"].double().numpy().reshape(self.second.shape).copy()


def optimizer_for(param: Tensor, block_size: int) -> Gefen:
    return NearestGefen(
        [param],
        lr=LR,
        second_moment="block",
        betas=(BETA1, BETA2),
        eps=EPS,
        weight_decay=DECAY,
        block_size=block_size,
        min_quantized_size=1,
    )


def check_follow(param: Tensor, block_size: int, grads: list[Tensor]) -> None:
    optimizer = optimizer_for(param, block_size)
    oracle = None
    precision = {torch.float64: 1e-12, torch.float32: 3e-6}.get(param.dtype, 0.0)
    for grad in grads:
        param.grad = grad.to(param.dtype)
        before = param.detach().clone()
        optimizer.step()
        state = optimizer.state[param]
        if oracle is None:
            oracle = Oracle(before, np.unique(state["codebook"].double().numpy()), block_size)
        oracle.step(param.grad)
        shape = oracle.scale.shape
        np.testing.assert_allclose(
            state["second_moment"].numpy().reshape(shape), oracle.second, rtol=3e-6
        )
        error = np.abs(state["scale"].numpy().reshape(shape) - oracle.scale)
        assert (error <= oracle.noise).all()
        sure = ~oracle.ties
        assert oracle.ties.sum() <= 4 + 0.1 * sure.size
        assert (rows_of(state["index"].numpy()) == oracle.index)[sure].all()
        found = rows_of(param.detach().double().numpy())
        # Parameters in 16 bits are rounded once, to nearest.
        spacing = torch.finfo(param.dtype).eps * np.abs(oracle.param) * 0.51
        error = np.abs(found - oracle.param) - (spacing if precision == 0 else 0)
        assert (error <= 3e-7 + precision * np.abs(oracle.param)).all()
        oracle.follow(param, state)


@settings(max_examples=30, deadline=None)
@given(
    shape=SHAPES,
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    block_size=st.integers(2, 50),
    seed=st.integers(0, 10**6),
)
def test_one_step_at_a_time(
    shape: tuple[int, ...], dtype: torch.dtype, block_size: int, seed: int
) -> None:
    grads = gradients(shape, 4, seed)
    if dtype == torch.float16:
        grads = [grad.clamp(-100, 100) for grad in grads]
    if not all(grad.to(dtype).any() for grad in grads[:1]):
        return
    param = torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)
    check_follow(param.requires_grad_(), block_size, grads)


@pytest.mark.parametrize("columns", [16, 63, 2047, 2048, 2049, 4099])
def test_row_lengths_with_the_default_block_size(columns: int) -> None:
    param = torch.randn(3, columns, dtype=torch.float32).requires_grad_()
    check_follow(param, 2048, gradients((3, columns), 3, columns))


@pytest.mark.parametrize("columns", [1, 15])
def test_short_rows_have_adamw_state(columns: int) -> None:
    param = torch.zeros(5000, columns, requires_grad=True)
    param.grad = torch.ones(5000, columns)
    optimizer = Gefen([param])
    optimizer.step()
    assert set(optimizer.state[param]) == {"step", "exp_avg", "exp_avg_sq"}


def test_codebook_from_the_definition() -> None:
    first, second = gradients((50, 70), 2, 3)
    params = [torch.zeros(50, 70, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    params[0].grad = first
    optimizer = Gefen(params, block_size=30, second_moment="block", min_quantized_size=1)
    optimizer.step()
    codebook = optimizer.state[params[0]]["codebook"].double().numpy()
    expected = levels_from(first.numpy(), equal_slices(70, 30))
    assert len(np.unique(codebook)) == len(expected)
    np.testing.assert_allclose(codebook[: len(expected)], expected, atol=3e-5)
    params[1].grad = second  # learned once, kept for a parameter that comes later
    optimizer.step()
    assert (optimizer.state[params[1]]["codebook"].double().numpy() == codebook).all()


def test_many_steps_on_its_own() -> None:
    """Left alone for 200 steps in float64, the oracle and the optimizer stay together."""
    shape, block_size = (5, 100), 40
    grads = gradients(shape, 200, 11)
    param = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    levels = levels_from(grads[0].numpy(), equal_slices(shape[1], block_size))
    oracle = Oracle(param, levels, block_size)
    optimizer = optimizer_for(param, block_size)
    for grad in grads:
        param.grad = grad
        optimizer.step()
        oracle.step(grad)
    moved = np.abs(oracle.param)
    assert moved.max() > 0.05
    assert np.abs(param.detach().numpy() - oracle.param).max() < 1e-3 * moved.max()


@settings(max_examples=20, deadline=None)
@given(
    shape=st.sampled_from([(30, 50), (3, 10, 50), (2, 700), (6, 5, 3, 3)]),
    layout=st.sampled_from(["contiguous", "transposed"]),
    elements=st.integers(1, 400),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    bits=st.sampled_from([4, 8, 32]),
    second_moment=st.sampled_from(["factored", "block"]),
)
def test_results_do_not_depend_on_chunks_or_memory_layout(
    shape: tuple[int, ...],
    layout: str,
    elements: int,
    dtype: torch.dtype,
    bits: int,
    second_moment: str,
) -> None:
    grads = gradients(shape, 3, 5)
    results = []
    for limit in (1 << 15, elements):
        param = torch.linspace(-1, 1, math.prod(shape)).view(shape).to(dtype)
        if layout == "transposed" and limit == elements:
            param = param.transpose(0, -1).contiguous().transpose(0, -1)
        param.requires_grad_()
        optimizer = Gefen(
            [param],
            second_moment=second_moment,
            group_size=20,
            block_size=20,
            min_quantized_size=1,
            first_moment_bits=bits,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gefen.updates.scratch, "CPU_CHUNK_ELEMENTS", limit)
            for grad in grads:
                param.grad = grad.to(dtype)
                if layout == "transposed" and limit != elements:
                    param.grad = param.grad.transpose(0, 1).contiguous().transpose(0, 1)
                optimizer.step()
        results.append([param.detach(), *optimizer.state[param].values()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
