"""torch.compile of a whole training step: forward, backward and the optimizer's step."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.lr_scheduler import LambdaLR

from gefen import Gefen

Build = Callable[..., Gefen]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make_step(
    build: Build, lr: float | Tensor
) -> tuple[nn.Module, Gefen, Callable[[Tensor], Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 16))
    optimizer = build(model.parameters(), lr=lr)

    def train_step(inputs: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = (model(inputs) - inputs).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return model, optimizer, train_step


def batch(step: int) -> Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("scheduled", [False, True], ids=["constant rate", "scheduled rate"])
def test_a_compiled_step_equals_an_eager_one_and_is_compiled_once(
    main_form: Build, scheduled: bool
) -> None:
    """Bit for bit, and nothing is compiled after the first step; a scheduled rate is a tensor."""
    losses, models, graphs = [], [], []
    counter = CompileCounterWithBackend("eager")
    for compiled in (False, True):
        lr: Any = torch.tensor(0.01) if scheduled else 0.01
        model, optimizer, step = make_step(main_form, lr)
        if compiled:
            step = torch.compile(step, backend=counter)
        schedule = LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)) if scheduled else None
        for number in range(6):
            losses.append(step(batch(number)))
            if schedule is not None:
                schedule.step()
            graphs.append(counter.frame_count)
        models.append(model)
    assert torch.equal(torch.stack(losses[:6]), torch.stack(losses[6:]))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
    assert graphs[5] == 0
    assert graphs[6] > 0
    assert graphs[6] == graphs[11]


def test_a_compiled_model_trains_with_an_eager_optimizer(main_form: Build) -> None:
    """The common way to compile, with AOTAutograd; against the same model uncompiled."""
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 16))
        forward = torch.compile(model, backend="aot_eager") if compiled else model
        optimizer = main_form(model.parameters(), lr=0.01)
        for number in range(5):
            optimizer.zero_grad()
            (forward(batch(number)) - batch(number)).square().mean().backward()
            optimizer.step()
        results.append([param.detach() for param in model.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
