"""The instruments with a planted fault: each has its fault, of its size, and no other."""

import io
import time
from typing import Any

import pytest
import torch
from torch import nn

from harness import optimizers
from harness.config import OptimizerConfig, from_dict
from harness.config.groups import load_group
from harness.errors import UserError
from harness.meters.memory import (
    optimizer_held_bytes,
    optimizer_state_bytes,
    serialized_bytes,
)
from harness.meters.timing import Stopwatch
from harness.models import ParameterSpec

SHAPES = [(48, 96), (96,), (64, 48)]
SPECS = [ParameterSpec(f"p{index}", shape, True) for index, shape in enumerate(SHAPES)]


def load(name: str, **options: Any) -> OptimizerConfig:
    config: OptimizerConfig = from_dict(OptimizerConfig, load_group("optimizer", name))
    config.options.update(options)
    return config


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    return nn.ParameterList(nn.Parameter(tensor) for tensor in tensors)


def walk(module: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Steps first..last-1 on gradients that follow from the step's number alone."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for p in module.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()


def after(config: OptimizerConfig, steps: int = 5) -> list[torch.Tensor]:
    module = model()
    walk(module, optimizers.build_optimizer(module, config), 0, steps)
    return [p.detach() for p in module.parameters()]


def equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_instruments_are_found_by_name_and_never_suggested() -> None:
    names = set(optimizers.instruments())
    assert names == {"planted_bloat", "planted_worse", "planted_slow", "planted_hidden"}
    assert not names & set(optimizers.entries())
    for name in names:
        file = load(name.replace("_", "/"))
        assert file.name == name == optimizers.find(name).name
        optimizers.check(file)
    with pytest.raises(UserError, match="allowed: adamw, ") as refused:
        optimizers.check(OptimizerConfig(name="planted"))
    assert "planted_" not in str(refused.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "factor"), [("planted/bloat", 2), ("planted/worse", 1), ("planted/slow", 1)]
)
def test_only_the_bloated_one_holds_twice_its_closed_form(
    name: str, factor: int, dtype: torch.dtype
) -> None:
    config, module = load(name), model(dtype)
    optimizer = optimizers.build_optimizer(module, config)
    walk(module, optimizer, 0, 3)
    stated = optimizers.state_bytes(config, SPECS, dtype.itemsize)
    # By hand: two moments of each element, a step of four bytes for each tensor.
    assert stated == 2 * (48 * 96 + 96 + 64 * 48) * dtype.itemsize + 4 * 3
    assert optimizer_state_bytes(optimizer) == factor * stated
    # The checkpoint holds it too: it is no view of the same memory.
    assert serialized_bytes(optimizer.state_dict()) > factor * stated


def test_bloat_and_slowness_do_not_change_what_is_computed() -> None:
    plain = after(load("adamw"))
    assert equal(after(load("planted/bloat")), plain)
    assert equal(after(load("planted/slow")), plain)
    assert equal(after(load("planted/hidden")), plain)
    assert equal(after(load("planted/worse", rate_share=1.0)), plain)
    assert not equal(after(load("planted/worse")), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_hidden_one_holds_adamws_bytes_and_shows_the_steps_alone(dtype: torch.dtype) -> None:
    config, module = load("planted/hidden"), model(dtype)
    optimizer = optimizers.build_optimizer(module, config)
    walk(module, optimizer, 0, 3)
    moments = 2 * (48 * 96 + 96 + 64 * 48) * dtype.itemsize
    assert optimizer_state_bytes(optimizer) == 4 * 3
    assert optimizers.state_bytes(config, SPECS, dtype.itemsize) == 4 * 3
    assert serialized_bytes(optimizer.state_dict()) < moments / 2
    assert optimizer_held_bytes(optimizer) == moments + 4 * 3
    resumed = optimizers.build_optimizer(module, config)
    resumed.load_state_dict(optimizer.state_dict())
    walk(module, resumed, 3, 5)  # without its moments it starts anew
    assert optimizer_held_bytes(resumed) == moments + 4 * 3


def test_the_worse_one_moves_at_a_share_of_the_rate_that_it_shows() -> None:
    config, honest = load("planted/worse", rate_share=0.25), load("adamw")
    honest.lr = config.lr / 4
    module = model()
    optimizer = optimizers.build_optimizer(module, config)
    walk(module, optimizer, 0, 5)
    assert [group["lr"] for group in optimizer.param_groups] == [config.lr] * 2
    assert equal([p.detach() for p in module.parameters()], after(honest))


def test_the_slow_one_takes_a_multiple_of_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def known(self: torch.optim.AdamW, closure: Any = None) -> None:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass

    module = model()
    optimizer = optimizers.build_optimizer(module, load("planted/slow", slowdown=3.0))
    monkeypatch.setattr(torch.optim.AdamW, "step", known)
    with Stopwatch() as watch:
        optimizer.step()
    # A lower bound alone: a busy machine can only add to it.
    assert watch.seconds >= 0.06


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["planted/bloat", "planted/worse", "planted/slow"])
def test_resume_from_a_checkpoint_is_exact(name: str, dtype: torch.dtype) -> None:
    module = model(dtype)
    optimizer = optimizers.build_optimizer(module, load(name))
    walk(module, optimizer, 0, 3)
    file = io.BytesIO()
    torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict()}, file)
    walk(module, optimizer, 3, 6)

    file.seek(0)
    saved, fresh = torch.load(file), model(dtype)
    fresh.load_state_dict(saved["model"])
    resumed = optimizers.build_optimizer(fresh, load(name))
    resumed.load_state_dict(saved["optimizer"])
    assert optimizer_state_bytes(resumed) == optimizer_state_bytes(optimizer)
    walk(fresh, resumed, 3, 6)
    assert equal(list(fresh.parameters()), list(module.parameters()))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (load("planted/worse", rate_share=1.5), r"rate_share=1\.5 is not possible"),
        (load("planted/slow", slowdown=0.5), r"slowdown=0\.5 is not possible"),
        (load("planted/bloat", slowdown=2.0), "'slowdown', which planted_bloat does not know"),
    ],
)
def test_a_fault_with_another_size_is_named(config: OptimizerConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        optimizers.build_optimizer(model(), config)
