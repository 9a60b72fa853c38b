"""Learning-rate schedules over the table: the loss goes the right way, the rates are AdamW's."""

import inspect
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from gefen import Gefen

Build = Callable[..., Gefen]
Pair = tuple[Tensor, Tensor]
STEPS = 12


def objective(pair: Pair) -> Tensor:
    """A quadratic of the output of a linear layer for one input, as in torch's own tests."""
    weight, bias = pair
    inputs = torch.linspace(-1, 1, 24, dtype=weight.dtype)
    return (weight.mv(inputs) + bias).square().sum()


def closure_for(optimizer: Optimizer, pair: Pair) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(pair)
        loss.backward()
        return loss

    return closure


SCHEDULERS: dict[str, Callable[[Optimizer], list[LRScheduler]]] = {
    "none": lambda opt: [],
    "step and plateau": lambda opt: [
        StepLR(opt, gamma=0.9, step_size=10),
        ReduceLROnPlateau(opt, patience=3),
    ],
    "one cycle": lambda opt: [OneCycleLR(opt, max_lr=[0.02, 0.01], total_steps=STEPS + 1)],
    "cyclic": lambda opt: [CyclicLR(opt, 1e-3, 1e-2, step_size_up=7)],
    "lambda by group": lambda opt: [
        LambdaLR(opt, [lambda epoch: 1 / (1 + epoch), lambda epoch: 0.9**epoch])
    ],
    "warm-up, cosine": lambda opt: [
        SequentialLR(
            opt, [LinearLR(opt, 0.1, total_iters=5), CosineAnnealingLR(opt, STEPS)], milestones=[5]
        )
    ],
    "chained": lambda opt: [
        ChainedScheduler([ExponentialLR(opt, 0.99), StepLR(opt, 7)], optimizer=opt)
    ],
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_loss_goes_the_right_way_and_rates_are_those_of_adamw(
    build: Build, options: dict[str, Any], pair: Pair, name: str
) -> None:
    """Two groups, a closure, every kind of schedule; an AdamW that stands still has the rates."""
    known = inspect.signature(AdamW).parameters
    shared = {key: value for key, value in deepcopy(options).items() if key in known}

    def groups(params: Pair) -> list[dict[str, Any]]:
        rate = deepcopy(options.get("lr", 0.01))
        return [{"params": [params[0]]}, {"params": [params[1]], "lr": rate}]

    ours = build(groups(pair))
    theirs = AdamW(groups(deepcopy(pair)), **{**shared, "foreach": False})
    schedulers = [SCHEDULERS[name](optimizer) for optimizer in (ours, theirs)]
    closure = closure_for(ours, pair)
    before = closure().item()
    for step in range(STEPS):
        ours.step(closure)
        theirs.step()
        for each in schedulers[0] + schedulers[1]:
            arguments = (float(step % 5),) if isinstance(each, ReduceLROnPlateau) else ()
            each.step(*arguments)
        for mine, others in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert float(mine["lr"]) == float(others["lr"])
            assert isinstance(mine["lr"], Tensor) == isinstance(others["lr"], Tensor)
            assert [float(b) for b in mine["betas"]] == [float(b) for b in others["betas"]]
    after = closure().item()
    assert (after > before) if options.get("maximize") else (after < before)
