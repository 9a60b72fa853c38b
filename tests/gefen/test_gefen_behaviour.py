"""What must hold for any model: zeros, non-finite values, 16-bit parameters, scales, training."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gefen import Gefen


def learned_optimizer(param: Tensor, **options: Any) -> Gefen:
    """An optimizer whose codebook exists, after one ordinary step."""
    optimizer = Gefen([param], **options)
    generator = torch.Generator().manual_seed(3)
    param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_elements_without_gradient_only_decay(dtype: torch.dtype) -> None:
    """Rows (embeddings) and columns (dead inputs) that never had a gradient."""
    start = torch.linspace(0.5, 2, 64 * 80, dtype=dtype).view(64, 80)
    param = start.clone().requires_grad_()
    optimizer = Gefen([param], lr=0.01, weight_decay=0.1)
    expected = start.clone()
    for step in range(50):
        grad = torch.randn(64, 80, generator=torch.Generator().manual_seed(step)).to(dtype)
        grad[10:20] = 0
        grad[:, 30:37] = 0
        param.grad = grad
        optimizer.step()
        expected.mul_(1 - 0.01 * 0.1)
    moved = (param.detach() - expected) != 0
    assert not moved[10:20].any()
    assert not moved[:, 30:37].any()
    moved[10:20] = True
    moved[:, 30:37] = True
    assert moved.all()


def test_zero_gradients_before_the_codebook() -> None:
    first = torch.ones(70, 70, requires_grad=True)
    second = torch.ones(70, 70, requires_grad=True)
    optimizer = Gefen([first, second], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        first.grad = torch.zeros(70, 70)
        optimizer.step()
    torch.testing.assert_close(first.detach(), torch.full((70, 70), 0.95**3))
    assert optimizer.state[first]["step"] == 0
    assert not optimizer.state[first]["codebook"].any()
    assert second not in optimizer.state
    # The first real gradient, of another parameter, is the first step of both.
    second.grad = torch.randn(70, 70)
    optimizer.step()
    assert optimizer.state[first]["step"] == optimizer.state[second]["step"] == 1
    assert optimizer.state[first]["codebook"][0] == -1
    torch.testing.assert_close(first.detach(), torch.full((70, 70), 0.95**4))
    # Bias correction counts from here: the first step has the size of lr.
    reference = torch.ones(70, 70, requires_grad=True)
    reference.grad = second.grad.clone()
    Gefen([reference], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(reference, second)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("learned", [False, True])
def test_non_finite_gradients_reach_the_parameter(bad: float, learned: bool) -> None:
    """And stay in their group of elements."""
    param = torch.ones(70, 70, requires_grad=True)
    build = learned_optimizer if learned else lambda p, **options: Gefen([p], **options)
    optimizer = build(param, second_moment="block")
    codebook = optimizer.state[param]["codebook"].clone() if learned else None
    param.grad = torch.zeros(70, 70)
    param.grad[3, 5] = bad
    optimizer.step()
    assert not param[3, 5].isfinite()
    assert param[torch.arange(70) != 3].isfinite().all()
    if codebook is not None:
        assert torch.equal(optimizer.state[param]["codebook"], codebook)
    param.grad = torch.randn(70, 70)
    optimizer.step()
    assert not param[3, 5].isfinite()
    assert optimizer.state[param]["codebook"].isfinite().all()
    assert optimizer.state[param]["codebook"][0] == -1


def test_the_codebook_ignores_blocks_that_are_not_finite() -> None:
    grad = torch.randn(70, 70, generator=torch.Generator().manual_seed(0))
    clean = torch.ones(70, 70, requires_grad=True)
    clean.grad = torch.where(torch.arange(70)[:, None] == 3, 0, grad)
    spoiled = torch.ones(70, 70, requires_grad=True)
    spoiled.grad = grad.clone()
    spoiled.grad[3, 5] = torch.nan
    optimizers = [Gefen([param], second_moment="block") for param in (clean, spoiled)]
    for optimizer in optimizers:
        optimizer.step()
    books = [o.state[p]["codebook"] for o, p in zip(optimizers, (clean, spoiled), strict=True)]
    assert torch.equal(*books)
    rest = torch.arange(70) != 3
    assert torch.equal(clean[rest], spoiled[rest])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_second_moment_of_16_bit_parameters(dtype: torch.dtype) -> None:
    """It follows float64 through 2000 steps of gradients ten times smaller than the first."""
    param = torch.zeros(64, 64, dtype=dtype, requires_grad=True)
    optimizer = Gefen([param], lr=1e-4, second_moment="block")
    generator = torch.Generator().manual_seed(0)
    expected = torch.zeros(64, 1, dtype=torch.float64)
    for step in range(2100):
        size = 1.0 if step < 100 else 0.1
        param.grad = (torch.randn(64, 64, generator=generator) * size).to(dtype)
        optimizer.step()
        mean = param.grad.double().square().mean(dim=1, keepdim=True)
        expected = 0.999 * expected + 0.001 * mean
    ratio = optimizer.state[param]["second_moment"].double() / expected
    assert (ratio - 1).abs().max() < 1e-2
    assert optimizer.state[param]["second_moment"].dtype == torch.float32


@pytest.mark.parametrize("power", [-30, -7, 12, 30])
@pytest.mark.parametrize("options", [{}, {"second_moment": "block"}, {"first_moment_bits": 4}])
def test_gradient_scale_does_not_matter(power: int, options: dict[str, Any]) -> None:
    """With eps = 0 and gradients times a power of two: the same updates, bit for bit."""
    params = [torch.ones(64, 80, requires_grad=True) for _ in range(2)]
    optimizers = [Gefen([param], lr=0.01, eps=0.0, **options) for param in params]
    for step in range(5):
        grad = torch.randn(64, 80, generator=torch.Generator().manual_seed(step))
        for param, optimizer, scale in zip(params, optimizers, (1.0, 2.0**power), strict=True):
            param.grad = grad * scale
            optimizer.step()
    assert torch.equal(*params)
    assert not torch.equal(params[0], torch.ones(64, 80))


def test_maximize_is_minimising_the_negative() -> None:
    params = [torch.ones(2, 32, 80, requires_grad=True) for _ in range(2)]
    optimizers = [Gefen([params[0]], maximize=True), Gefen([params[1]])]
    for step in range(4):
        grad = torch.randn(2, 32, 80, generator=torch.Generator().manual_seed(step))
        for param, optimizer, sign in zip(params, optimizers, (-1, 1), strict=True):
            param.grad = grad * sign
            optimizer.step()
    assert torch.equal(*params)


def test_channels_last_model() -> None:
    def build(memory_format: torch.memory_format) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(8, 64, 3), nn.ReLU(), nn.Conv2d(64, 16, 3))
        return model.to(memory_format=memory_format)

    formats = (torch.contiguous_format, torch.channels_last)
    models = [build(memory_format) for memory_format in formats]
    assert not models[1][0].weight.is_contiguous()
    # The reference takes every memory layout, the fused update contiguous memory alone.
    optimizers = [Gefen(model.parameters(), lr=0.01, fused=False) for model in models]
    for step in range(4):
        gradients = [
            torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            for p in models[0].parameters()
        ]
        for model, optimizer, memory_format in zip(models, optimizers, formats, strict=True):
            for param, grad in zip(model.parameters(), gradients, strict=True):
                last = param.ndim == 4
                param.grad = grad.to(memory_format=memory_format) if last else grad.clone()
            optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_same_run_twice() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64))
        optimizer = Gefen(model.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(8, 64)).square().mean().backward()
            optimizer.step()
        results.append(torch.cat([param.detach().flatten() for param in model.parameters()]))
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_trains(dtype: torch.dtype) -> None:
    """Regression on a fixed teacher: the loss falls as far as AdamW's, within a factor of two."""
    losses = {}
    for cls in (Gefen, torch.optim.AdamW):
        torch.manual_seed(0)
        teacher = nn.Linear(64, 64)
        student = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).to(dtype)
        optimizer = cls(student.parameters(), lr=5e-3, weight_decay=0.0)
        for _ in range(100):
            inputs = torch.randn(32, 64)
            loss = (student(inputs.to(dtype)).float() - teacher(inputs).detach()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[cls] = float(loss.detach())
    assert losses[Gefen] < 2 * losses[torch.optim.AdamW]
    assert losses[Gefen] < 0.15


@pytest.mark.parametrize("second_moment", ["factored", "block", "paper", "peak"])
@pytest.mark.parametrize("bits", [4, 8, 32])
def test_capturable_equals_the_ordinary_step(second_moment: str, bits: int) -> None:
    """Numbers kept as tensors change the last bits alone; the random bits are the same."""
    params = [torch.ones(64, 80, requires_grad=True) for _ in range(2)]
    options = {"second_moment": second_moment, "first_moment_bits": bits}
    optimizers = [
        Gefen([param], lr=0.01, capturable=capturable, **options)
        for param, capturable in zip(params, (False, True), strict=True)
    ]
    for step in range(10):
        grad = torch.randn(64, 80, generator=torch.Generator().manual_seed(step))
        for param, optimizer in zip(params, optimizers, strict=True):
            param.grad = grad.clone()
            optimizer.step()
    torch.testing.assert_close(*params, rtol=1e-5, atol=1e-6)
    if bits < 32:
        indices = [o.state[p]["index"] for o, p in zip(optimizers, params, strict=True)]
        assert (indices[0] == indices[1]).float().mean() > 0.99


def test_a_non_finite_gradient_skips_the_whole_step_on_request() -> None:
    params = [torch.ones(64, 80, requires_grad=True), torch.ones(5, requires_grad=True)]
    optimizer = Gefen(params, skip_nonfinite=True)
    for step in range(3):
        for param in params:
            param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    before = copy.deepcopy(([p.detach() for p in params], optimizer.state_dict()["state"]))
    params[1].grad[2] = torch.inf
    optimizer.step()
    assert optimizer.skipped_steps.item() == 1
    assert all(torch.equal(p, q) for p, q in zip(params, before[0], strict=True))
    for key, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[name], before[1][key][name]) for name in state)
    params[1].grad[2] = 1.0
    optimizer.step()
    assert optimizer.skipped_steps.item() == 1
    assert not torch.equal(params[0], before[0][0])
