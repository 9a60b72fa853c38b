"""Layers and layouts: convolutions, memory formats, experts, tied weights, odd shapes."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from gefen import Gefen

Build = Callable[..., Gefen]


def values(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def run(optimizer: Optimizer, params: list[Tensor], steps: int = 4) -> None:
    """Steps with gradients that depend on the parameter's shape and the step alone."""
    for step in range(steps):
        for number, param in enumerate(params):
            seed = 100 * number + step
            param.grad = torch.empty_like(param).copy_(values(tuple(param.shape), seed))
        optimizer.step()


LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "transposed": ((9, 20), lambda t: t.t().contiguous().t()),
    "every second column": ((9, 20), lambda t: t.repeat_interleave(2, 1)[:, ::2]),
    "rows of a wider matrix": ((9, 20), lambda t: torch.cat([t, t], 1)[:, :20]),
    "permuted experts": ((3, 4, 16), lambda t: t.permute(2, 0, 1).contiguous().permute(1, 2, 0)),
    "transposed experts": ((3, 4, 16), lambda t: t.mT.contiguous().mT),
    "channels_last": ((5, 4, 3, 3), lambda t: t.to(memory_format=torch.channels_last)),
    "channels_last_3d": ((4, 3, 2, 3, 2), lambda t: t.to(memory_format=torch.channels_last_3d)),
    "transposed convolution": (
        (5, 4, 3, 3),
        lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    ),
    "strided vector": ((20,), lambda t: t.repeat_interleave(3)[::3]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_in_memory_does_not_matter(form: Build, name: str) -> None:
    """Non-contiguous parameters and gradients, in any combination, step as contiguous ones."""
    shape, lay_out = LAYOUTS[name]
    start = values(shape, 1)
    expected = start.clone().requires_grad_()
    run(form([expected]), [expected], steps=3)
    for strided_param, strided_grad in ((True, False), (False, True)):
        param = (lay_out(start) if strided_param else start.clone()).detach().requires_grad_()
        assert param.is_contiguous() == (not strided_param)
        optimizer = form([param])
        for step in range(3):
            grad = values(shape, step)
            param.grad = lay_out(grad) if strided_grad else grad
            optimizer.step()
        torch.testing.assert_close(param, expected, rtol=1e-6, atol=1e-7)


def test_a_convolution_is_the_matrix_of_its_output_channels(build: Build) -> None:
    start = values((5, 4, 3, 3), 1)
    kernel, matrix = start.clone().requires_grad_(), start.flatten(1).requires_grad_()
    optimizers = build([kernel]), build([matrix])
    for step in range(4):
        kernel.grad = values((5, 4, 3, 3), step)
        matrix.grad = kernel.grad.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(kernel.flatten(1), matrix)


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def test_dtypes_may_be_mixed(form: Build) -> None:
    """Each parameter steps as if all were float32, to its own precision."""
    mixed = [values((3, 20), n).bfloat16().to(dtype) for n, dtype in enumerate(DTYPES)]
    plain = [param.float() for param in mixed]
    optimizers = []
    for params in (mixed, plain):
        optimizers.append(form([param.requires_grad_() for param in params], lr=0.01))
        for step in range(3):
            for number, param in enumerate(params):
                grad = values((3, 20), 10 * step + number).half().bfloat16()
                param.grad = grad.to(param.dtype)
            optimizers[-1].step()
    for a, b in zip(mixed, plain, strict=True):
        # Three roundings of values up to 4, of updates of about .01.
        tolerance = 12 * torch.finfo(a.dtype).eps if a.dtype.itemsize == 2 else 1e-6
        torch.testing.assert_close(a.detach().float(), b.detach(), rtol=0, atol=tolerance)
        assert {n: v.dtype for n, v in optimizers[0].state[a].items()} == {
            n: v.dtype for n, v in optimizers[1].state[b].items()
        }


SHAPES = [(), (1,), (7,), (0,), (0, 40), (40, 0), (3, 0, 20), (1, 1), (1, 17), (3, 15), (2, 1, 24)]


def test_odd_shapes_step_beside_ordinary_ones(build: Build, options: dict[str, Any]) -> None:
    """Zero-size, 0-d and tiny ones; those with fewer than 16 columns are AdamW's to rounding."""
    shapes = [*SHAPES, (8, 24)]
    ours = [values(shape, 7).requires_grad_() for shape in shapes]
    theirs = [param.detach().clone().requires_grad_() for param in ours]
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": options.get("weight_decay", 0.01)}
    run(build(ours, **settings), ours)
    run(AdamW(theirs, **settings, maximize=options.get("maximize", False)), theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.isfinite().all()
        if a.ndim < 2 or a.shape[-1] < 16 or a.numel() == 0:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", ["factored", "block"])
def test_stacked_experts_step_as_separate_matrices(form: str) -> None:
    """Experts share nothing but a tensor (first moment in float32, so no rounding differs)."""
    options: dict[str, Any] = {"second_moment": form, "first_moment_bits": 32}
    start = values((3, 16, 20), 1)
    stacked = start.clone().requires_grad_()
    single = [expert.clone().requires_grad_() for expert in start]
    together = Gefen([stacked], min_quantized_size=1, **options)
    apart = Gefen(single, min_quantized_size=1, **options)
    for step in range(5):
        # Experts whose gradients differ in size by orders of magnitude.
        grad = values((3, 16, 20), step) * torch.tensor([1.0, 1e-4, 1e3]).view(3, 1, 1)
        stacked.grad = grad
        for param, part in zip(single, grad, strict=True):
            param.grad = part.clone()
        together.step()
        apart.step()
    for found, expected in zip(stacked, single, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


class Experts(nn.Module):
    """Top-1 routing by the input's own first value: the last two of four experts stay idle."""

    def __init__(self, stacked: bool) -> None:
        super().__init__()
        weights = values((4, 4, 16), 3) * 0.2
        parts = [weights] if stacked else list(weights.clone())
        self.parts = nn.ParameterList(parts)

    def weight(self, expert: int) -> Tensor:
        return self.parts[expert] if len(self.parts) == 4 else self.parts[0][expert]

    def forward(self, inputs: Tensor) -> Tensor:
        route = (inputs[:, 0] > 0).long()
        outputs = inputs.new_zeros(len(inputs), 4)
        for expert in range(2):
            rows = (route == expert).nonzero().squeeze(1)
            outputs = outputs.index_add(0, rows, inputs[rows] @ self.weight(expert).t())
        return outputs


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "separate"])
def test_idle_experts_do_not_move(form: Build, stacked: bool) -> None:
    """Those of a stacked tensor decay, those without a gradient keep still, the others learn."""
    model = Experts(stacked)
    idle = [model.weight(expert).detach().clone() for expert in (2, 3)]
    optimizer = form(model.parameters(), lr=0.02)
    losses = []
    for step in range(20):
        inputs = values((24, 16), step)
        loss = (model(inputs) - inputs[:, :4]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    for expert, start in zip((2, 3), idle, strict=True):
        decayed = start * (1 - 0.02 * 1e-2) ** 20 if stacked else start
        torch.testing.assert_close(model.weight(expert), decayed, rtol=1e-5, atol=0)
    assert losses[-1] < 0.6 * losses[0]
    if not stacked:
        assert set(optimizer.state) == set(model.parts[:2])


def test_tied_embeddings_are_one_parameter(form: Build) -> None:
    """Counted once, updated once, still tied; the model learns a cycle of tokens."""
    torch.manual_seed(0)
    embedding, head = nn.Embedding(10, 18), nn.Linear(18, 10, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, nn.Linear(18, 18), head)
    optimizer = form(model.parameters(), lr=0.02)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3
    tokens, losses = torch.arange(10), []
    for _ in range(30):
        loss = F.cross_entropy(model(tokens), tokens.roll(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert head.weight is embedding.weight
    assert len(optimizer.state) == 3
    assert losses[-1] < 0.2 * losses[0]


CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "1d": lambda: nn.Sequential(nn.Conv1d(3, 8, 16), nn.ReLU(), nn.Conv1d(8, 3, 16, padding=15)),
    "2d": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 3, 3)),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(3, 6, 5, groups=3, padding=2), nn.Conv2d(6, 3, 1)),
    "3d": lambda: nn.Sequential(nn.Conv3d(3, 4, 2), nn.ConvTranspose3d(4, 3, 2)),
}


def reconstruction_losses(name: str, construct: Callable[..., Optimizer]) -> tuple[float, float]:
    """Loss of the first and of the last of twenty steps."""
    torch.manual_seed(0)
    size = {"1d": (4, 3, 24), "3d": (4, 3, 4, 4, 4)}.get(name, (4, 3, 6, 6))
    model = CONVOLUTIONS[name]()
    if len(size) == 4:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = construct(model.parameters(), lr=0.02)
    losses = []
    for step in range(20):
        inputs = values(size, step)
        loss = (model(inputs) - inputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


@cache
def losses_of_adamw(name: str) -> tuple[float, float]:
    return reconstruction_losses(name, AdamW)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_learn_as_with_adamw(main_form: Build, name: str) -> None:
    """To reproduce their input; channels_last where there is such a format."""
    before, after = reconstruction_losses(name, main_form)
    _, adamw = losses_of_adamw(name)
    assert before - after > 0.8 * (before - adamw)
