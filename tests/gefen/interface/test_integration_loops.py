"""Training loops as users write them: plain, mixed precision, loss scaling, accelerate."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader, TensorDataset

from gefen import Gefen

Build = Callable[..., Gefen]
SIZE = 12


def make_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, SIZE), nn.Tanh(), nn.Linear(SIZE, 3)).to(dtype)


def batch(seed: int, rows: int = 16, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Inputs and the answers of a fixed linear teacher."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 16, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, inputs[:, :3] - inputs[:, 3:6]


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return (model(inputs).to(targets.dtype) - targets).square().mean()


def assert_same_parameters(first: nn.Module, second: nn.Module, rounding: float = 0.0) -> None:
    """Equality, bit for bit unless a relative and absolute `rounding` is allowed."""
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=rounding, atol=rounding)


def plain_run(
    construct: Callable[..., Optimizer], dtype: torch.dtype
) -> tuple[float, float, Optimizer]:
    """Loss on further data before and after twenty steps."""
    model = make_model(dtype)
    before = loss_of(model, *batch(-1, 64, dtype)).item()
    optimizer = construct(model.parameters(), lr=0.02)
    for step in range(20):
        optimizer.zero_grad()
        loss_of(model, *batch(step, dtype=dtype)).backward()
        optimizer.step()
    assert all(param.dtype == dtype for param in model.parameters())
    return before, loss_of(model, *batch(-1, 64, dtype)).item(), optimizer


@cache
def improvement_of_adamw() -> float:
    before, after, _ = plain_run(AdamW, torch.float64)
    return before - after


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_plain_loop_learns_as_adamw_does(form: Build, dtype: torch.dtype) -> None:
    """Held against float64; the dtypes of the state do not follow those of the parameters."""
    before, after, optimizer = plain_run(form, dtype)
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert {tensor.dtype for tensor in tensors} <= {torch.float32, torch.uint8}
    assert before - after > 0.9 * improvement_of_adamw()


def test_a_sum_of_gradients_is_the_gradient_of_the_sum(build: Build) -> None:
    """Four backward passes and one step, against one pass over the large batch (float64)."""
    models = make_model(torch.float64), make_model(torch.float64)
    optimizers = [build(model.parameters(), lr=0.01) for model in models]
    for step in range(5):
        inputs, targets = batch(step, dtype=torch.float64)
        loss_of(models[0], inputs, targets).backward()
        for part in range(4):
            rows = slice(4 * part, 4 * part + 4)
            (loss_of(models[1], inputs[rows], targets[rows]) / 4).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert_same_parameters(*models, rounding=1e-9)


def amp_run(build: Build, dtype: torch.dtype, scale: float | None, bad: int | None) -> nn.Module:
    """Six steps under autocast; `bad` is a further step, in which the loss overflows."""
    model = make_model()
    optimizer = build(model.parameters(), lr=0.01)
    enabled = scale is not None
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=enabled)
    for step in range(6):
        for infinite in (True, False) if step == bad else (False,):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                loss = loss_of(model, *batch(step))
            scaler.scale(loss * torch.inf if infinite else loss).backward()
            scaler.step(optimizer)
            scaler.update()
    if scale is not None:
        assert scaler.get_scale() == (scale if bad is None else scale / 2)
    return model


@pytest.mark.parametrize(
    ("dtype", "bad"), [(torch.bfloat16, 0), (torch.bfloat16, 3), (torch.float16, 3)]
)
def test_the_gradient_scaler_skips_and_unscales(form: Build, dtype: torch.dtype, bad: int) -> None:
    """A step with an overflow leaves no trace, and a scale of a power of two none either."""
    spoiled = amp_run(form, dtype, 256.0, bad)
    assert_same_parameters(spoiled, amp_run(form, dtype, 256.0, None))
    if dtype == torch.bfloat16:  # float16 has no exponents to spare: scaling changes rounding
        assert_same_parameters(spoiled, amp_run(form, dtype, None, None))


@pytest.mark.parametrize("poison", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("bad", [0, 2])
def test_skip_nonfinite_does_so_without_a_scaler(poison: float, bad: int) -> None:
    """A step with one bad value anywhere is as no step at all, for every parameter."""
    models = make_model(), make_model()
    for model, spoil in zip(models, (True, False), strict=True):
        optimizer = Gefen(model.parameters(), min_quantized_size=1, skip_nonfinite=True)
        for step in range(4):
            loss_of(model, *batch(step)).backward()
            if spoil and step == bad:
                grads = [param.grad for param in model.parameters() if param.grad is not None]
                kept = [grad.clone() for grad in grads]
                grads[-1][1] = poison
                optimizer.step()
                for grad, value in zip(grads, kept, strict=True):
                    grad.copy_(value)
            optimizer.step()
            optimizer.zero_grad()
    assert_same_parameters(*models)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """Accelerate keeps its configuration in class attributes: leave none behind."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, gradient_accumulation_steps=4)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_accelerate_accumulates_into_the_large_batch(
    build: Build, accelerator: Accelerator
) -> None:
    """With a schedule and clipping: equal to a plain loop over batches four times as large."""
    data = TensorDataset(*batch(0, 48, torch.float64))

    def parts(rows: int) -> tuple[Any, ...]:
        model = make_model(torch.float64)
        optimizer = build(model.parameters(), lr=0.01)
        schedule = LinearLR(optimizer, 1.0, 0.5, total_iters=3)
        return model, optimizer, DataLoader(data, batch_size=rows), schedule

    plain, optimizer, loader, schedule = parts(16)
    for inputs, targets in loader:
        loss_of(plain, inputs, targets).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model, prepared, loader, schedule = accelerator.prepare(*parts(4))
    steps = 0
    for inputs, targets in loader:
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, inputs, targets))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
                steps += 1
            prepared.step()
            schedule.step()
            prepared.zero_grad()
    assert steps == 3
    assert prepared.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert_same_parameters(plain, accelerator.unwrap_model(model), rounding=1e-9)
