"""The interface: what breaks in training scripts with the published constructor, not in ours."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from .ours import every_option, noise, ours, parameter
from .published import PublishedInterface


def two_groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:2], "lr": 1e-3}, {"params": params[2:], "lr": 1e-4}]


def four() -> list[nn.Parameter]:
    return [parameter(64, 64), parameter(64), parameter(64, 64), parameter(64)]


def test_published_breaks_one_cycle_and_groupwise_schedules() -> None:
    optimizer = PublishedInterface(four())
    with pytest.raises(ValueError, match="momentum"):
        OneCycleLR(optimizer, max_lr=1e-2, total_steps=10)
    with pytest.raises(ValueError, match="Expected 4 lr_lambdas, but got 2"):
        LambdaLR(optimizer, [lambda _: 1.0, lambda _: 0.5])
    frozen = parameter(64, 64).requires_grad_(False)
    assert frozen not in {
        p for g in PublishedInterface([*four(), frozen]).param_groups for p in g["params"]
    }


@every_option
def test_ours_runs_one_cycle_and_groupwise_schedules(second_moment: str, bits: int) -> None:
    """The rates and betas of the groups are those of AdamW under the same schedule."""
    mine = ours(two_groups(four()), second_moment, bits)
    reference = torch.optim.AdamW(two_groups(four()))
    cycles = [OneCycleLR(o, max_lr=[1e-2, 1e-3], total_steps=10) for o in (mine, reference)]
    for _ in range(8):
        for optimizer, cycle in zip((mine, reference), cycles, strict=True):
            optimizer.step()
            cycle.step()
        for own, other in zip(mine.param_groups, reference.param_groups, strict=True):
            assert own["lr"] == other["lr"]
            assert own["betas"] == other["betas"]
    groups = ours(two_groups(four()), second_moment, bits)
    schedule = LambdaLR(groups, [lambda _: 1.0, lambda _: 0.5])
    assert schedule.get_last_lr() == [1e-3, 5e-5]


@every_option
def test_a_frozen_parameter_stays_and_can_be_thawed(second_moment: str, bits: int) -> None:
    params = four()
    params[0].requires_grad_(False)
    optimizer = ours(params, second_moment, bits)
    assert [len(group["params"]) for group in optimizer.param_groups] == [4]

    def step() -> None:
        for param in params:
            if param.requires_grad:
                param.grad = noise(1, *param.shape)[0]
        optimizer.step()

    step()
    assert not params[0].any()
    params[0].requires_grad_(True)
    step()
    assert params[0].any()


@every_option
def test_maximize_closure_and_later_groups(second_moment: str, bits: int) -> None:
    down, up, later = parameter(64, 64), parameter(64, 64), parameter(64, 64)
    gradient = noise(1, 64, 64)[0]

    def closure(param: Tensor) -> Tensor:
        assert torch.is_grad_enabled()
        loss = (param * gradient).sum() + 3
        loss.backward()
        return loss

    minimiser = ours([down], second_moment, bits)
    maximiser = ours([up], second_moment, bits, maximize=True)
    assert minimiser.step(lambda: closure(down)) == 3
    assert maximiser.step(lambda: closure(up)) == 3
    assert torch.equal(down, -up)
    assert (down * gradient).sum() < 0
    minimiser.add_param_group({"params": [later], "betas": (0.5, 0.9)})
    later.grad = gradient
    minimiser.step()
    assert later.any()


@every_option
def test_float64_parameters_keep_their_precision(second_moment: str, bits: int) -> None:
    param = nn.Parameter(torch.ones(64, 64, dtype=torch.float64))
    optimizer = ours([param], second_moment, bits, lr=1e-9)
    param.grad = noise(1, 64, 64)[0].double()
    optimizer.step()
    moved = (1 - param.detach()).abs()
    assert 0 < moved.max() < 1e-7  # a float32 copy would have lost or rounded it
    assert (moved * 2.0**30 % 1 != 0).any()
