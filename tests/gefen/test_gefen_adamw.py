"""Without quantisation and with blocks of one element, Gefen is torch.optim.AdamW."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from gefen import Gefen

SHAPES = ((40, 33), (3, 20, 17), (12, 4, 3, 3), (37,), (9, 5), (), (0, 20))
PLAIN = {
    "first_moment_bits": 32,
    "second_moment": "block",
    "block_size": 1,
    "min_quantized_size": 1,
}


def parameters(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in SHAPES
    ]


def set_gradients(params: list[Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for number, param in enumerate(params):
        scale = 10.0 ** (number - 3)
        noise = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        param.grad = (noise * scale).to(param.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.0, "betas": (0.5, 0.7)},
        {"weight_decay": 0.3, "maximize": True, "lr": 0.1},
        {"lr": torch.tensor(0.02), "eps": 1e-3},
        {"betas": (torch.tensor(0.8), torch.tensor(0.9)), "foreach": False},
        {"betas": (0.0, 0.0)},
    ],
)
def test_equals_adamw(dtype: torch.dtype, options: dict[str, Any]) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    first = Gefen(ours, **options, **PLAIN)
    second = torch.optim.AdamW(theirs, **{"foreach": False, **options})
    for step in range(6):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        first.step()
        second.step()
    # State is float32 whatever the parameter; updates are up to .1 in size.
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


def test_exact_state_is_adamw_bit_for_bit() -> None:
    """Parameters without groups; the reference, since torch's own forms differ in last bits."""
    ours = [torch.linspace(-1, 1, 300).requires_grad_(), torch.ones(5, 5).requires_grad_()]
    theirs = [param.detach().clone().requires_grad_() for param in ours]
    first, second = Gefen(ours, fused=False), torch.optim.AdamW(theirs, foreach=False)
    for step in range(10):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        first.step()
        second.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cycle", [False, True])
def test_schedulers(cycle: bool) -> None:
    """Also those that change betas in the groups (OneCycleLR)."""
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    optimizers = [Gefen(ours, **PLAIN), torch.optim.AdamW(theirs, foreach=False)]
    schedulers = [
        OneCycleLR(o, max_lr=0.1, total_steps=10) if cycle else LambdaLR(o, lambda t: 0.5**t)
        for o in optimizers
    ]
    for step in range(6):
        for params, optimizer, scheduler in zip(
            (ours, theirs), optimizers, schedulers, strict=True
        ):
            set_gradients(params, step)
            optimizer.step()
            scheduler.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


def test_group_options_and_added_groups() -> None:
    ours, theirs = parameters(torch.float32), parameters(torch.float32)

    def build(cls: type, params: list[Tensor], **options: Any) -> torch.optim.Optimizer:
        optimizer = cls(
            [
                {"params": params[:2], "lr": 0.1, "betas": (0.5, 0.6)},
                {"params": params[2:4], "weight_decay": 0.5, "eps": 1e-2},
            ],
            **options,
        )
        optimizer.add_param_group({"params": params[4:], "maximize": True})
        return optimizer

    optimizers = [build(Gefen, ours, **PLAIN), build(torch.optim.AdamW, theirs, foreach=False)]
    for step in range(4):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_gradients(params, step)
            params[1].grad = None if step % 2 else params[1].grad
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


def test_closure_and_frozen_parameters() -> None:
    weight = torch.ones(80, 80, requires_grad=True)
    frozen = torch.ones(80, 80)
    optimizer = Gefen([("weight", weight), ("frozen", frozen)])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = ((weight + frozen) ** 2).mean()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4
    assert optimizer.step(closure) < 4
    assert optimizer.param_groups[0]["param_names"] == ["weight", "frozen"]
    assert frozen not in optimizer.state
    assert bool((frozen == 1).all())


REFUSED: list[dict[str, Any]] = [
    {"lr": -1.0},
    {"lr": float("nan")},
    {"lr": torch.ones(2)},
    {"betas": (1.0, 0.9)},
    {"betas": (0.9, -0.1)},
    {"eps": -1e-8},
    {"weight_decay": -0.1},
]
OURS: list[dict[str, Any]] = [
    {"amsgrad": True},
    {"differentiable": True},
    {"fused": True, "first_moment_bits": 32},
    {"first_moment_bits": 3},
    {"second_moment": "rows"},
    {"group_size": 0},
    {"skip_nonfinite": True, "capturable": True},
    {"first_moment_bits": "8"},
    {"block_size": 0},
    {"block_size": 2.5},
    {"min_quantized_size": 0},
]


@pytest.mark.parametrize(
    ("options", "known"), [(o, True) for o in REFUSED] + [(o, False) for o in OURS]
)
def test_refused_options(options: dict[str, Any], known: bool) -> None:
    """In AdamW's own words where AdamW knows the option."""
    param = torch.ones(2, 2, requires_grad=True)
    with pytest.raises(ValueError, match=r"\S") as ours:
        Gefen([param], **options)
    if known:
        with pytest.raises(ValueError, match=r"\S") as theirs:
            torch.optim.AdamW([param], **options)
        assert str(ours.value) == str(theirs.value)
    optimizer = Gefen([torch.ones(2, requires_grad=True)])
    with pytest.raises(ValueError, match=r"\S"):
        optimizer.add_param_group({"params": [param], **options})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_refused_parameters(dtype: torch.dtype) -> None:
    optimizer = Gefen([torch.ones(2, requires_grad=True)])
    param = torch.zeros(2, 2, dtype=dtype)
    with pytest.raises(ValueError, match=str(dtype)):
        optimizer.add_param_group({"params": [param]})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_are_refused_before_any_change() -> None:
    dense = torch.ones(70, 70, requires_grad=True)
    sparse = torch.ones(70, 70, requires_grad=True)
    dense.grad = torch.ones(70, 70)
    sparse.grad = torch.ones(70, 70).to_sparse()
    optimizer = Gefen([dense, sparse])
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert bool((dense == 1).all())
    assert not optimizer.state
