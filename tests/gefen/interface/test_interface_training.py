"""Generic behaviour of `step` over the table, after the generic tests of torch.optim."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from gefen import Gefen

Build = Callable[..., Gefen]
Pair = tuple[Tensor, Tensor]


def random_gradients(pair: Pair, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in pair:
        param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)


def gradients(pair: Pair) -> list[Tensor]:
    return [param.grad for param in pair if param.grad is not None]


def run(optimizer: Optimizer, pair: Pair, steps: int = 4) -> list[Tensor]:
    for step in range(steps):
        random_gradients(pair, step)
        optimizer.step()
    return [param.detach().clone() for param in pair]


def fresh(pair: Pair) -> Pair:
    return deepcopy(pair)


def test_groups_use_their_own_rate_and_decay(build: Build, pair: Pair) -> None:
    """A rate of zero moves nothing; with zero gradients a group's decay is all that happens."""
    still, moving = fresh(pair), fresh(pair)
    optimizer = build(
        [{"params": still, "lr": 0.0}, {"params": moving, "lr": 0.125, "weight_decay": 0.5}]
    )
    for params in (still, moving):
        random_gradients(params, 0)
    optimizer.step()
    for a, b, c in zip(still, moving, pair, strict=True):
        assert torch.equal(a, c)
        # Beside the decay, AdamW's first step has the size of the rate.
        moved = (b - c * (1 - 0.125 * 0.5)).abs().mean()
        assert 0.5 * 0.125 < moved < 1.5 * 0.125


def test_zero_gradients_leave_decay_alone(
    build: Build, options: dict[str, Any], pair: Pair
) -> None:
    """From the first step, and after steps in which other parameters had gradients."""
    quiet = fresh(pair)
    optimizer = build([*pair, *quiet], lr=0.125)
    expected = [param.detach().clone() for param in quiet]
    for step in range(4):
        random_gradients(pair, step)
        for param in (*pair, *quiet) if step == 0 else quiet:
            param.grad = torch.zeros_like(param)
        optimizer.step()
        for value in expected:
            value.mul_(1 - 0.125 * options.get("weight_decay", 1e-2))
    for param, value in zip(quiet, expected, strict=True):
        torch.testing.assert_close(param.detach(), value, rtol=1e-6, atol=0)


def test_no_gradient_no_change_and_no_state(build: Build, pair: Pair) -> None:
    """Unused and frozen parameters, among others that are used, and without any that are."""
    unused, frozen = fresh(pair), tuple(p.detach().clone() for p in pair)
    optimizer = build([*pair, *unused, *frozen])
    optimizer.step()
    assert not optimizer.state
    run(optimizer, pair)
    assert set(optimizer.state) == set(pair)
    for a, b in zip(unused, frozen, strict=True):
        assert torch.equal(a, b)


def test_a_parameter_may_start_and_stop_late(build: Build, pair: Pair) -> None:
    """Frozen after two steps and thawed after four, it continues as if the others did not exist."""
    alone, companion = fresh(pair), fresh(pair)
    single, both = build(alone), build([*pair, *companion])
    run(single, alone, 2)
    run(both, pair, 2)
    for param in pair:
        param.requires_grad_(False)
        param.grad = None
    run(both, companion, 2)
    both.zero_grad()
    for param in pair:
        param.requires_grad_(True)
    for a, b in zip(run(single, alone, 2), run(both, pair, 2), strict=True):
        assert torch.equal(a, b)


def test_zero_grad_is_that_of_torch(build: Build, pair: Pair) -> None:
    optimizer = build(pair)
    random_gradients(pair, 0)
    before = gradients(pair)
    optimizer.zero_grad(set_to_none=False)
    for param, grad in zip(pair, before, strict=True):
        assert param.grad is grad
        assert not grad.any()
    optimizer.zero_grad()
    assert all(param.grad is None for param in pair)


def test_gradients_and_tensor_options_are_never_written(
    build: Build, options: dict[str, Any], pair: Pair
) -> None:
    optimizer = build(pair, lr=torch.tensor(0.01), foreach=None)
    group = optimizer.param_groups[0]
    watched = [value for value in (group["lr"], *group["betas"]) if isinstance(value, Tensor)]
    for step in range(3):
        random_gradients(pair, step)
        tensors = [*watched, *gradients(pair)]
        values = [tensor.clone() for tensor in tensors]
        versions = [tensor._version for tensor in tensors]
        optimizer.step()
        assert versions == [tensor._version for tensor in tensors]
        assert all(torch.equal(a, b) for a, b in zip(tensors, values, strict=True))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)], ids=str)
def test_tensor_options_equal_numbers(build: Build, pair: Pair, shape: tuple[int, ...]) -> None:
    """Whatever the number of dimensions; the values are exact in float32."""
    other = fresh(pair)
    tensors = build(
        pair,
        lr=torch.full(shape, 2.0**-6),
        betas=(torch.full(shape, 0.75), torch.full(shape, 0.875)),
        foreach=None,
    )
    numbers = build(other, lr=2.0**-6, betas=(0.75, 0.875), foreach=None)
    for a, b in zip(run(tensors, pair), run(numbers, other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "switch", [{"foreach": True}, {"foreach": False}, {"capturable": True}], ids=str
)
def test_switches_of_the_implementation_do_not_change_the_result(
    build: Build, pair: Pair, switch: dict[str, bool]
) -> None:
    """`skip_nonfinite` reads a flag in every step and is left out: it excludes `capturable`."""
    other = fresh(pair)
    common: dict[str, Any] = {
        "lr": 0.01,
        "betas": (0.9, 0.99),
        "foreach": None,
        "capturable": False,
    }
    common["skip_nonfinite"] = False
    first, second = build(pair, **common), build(other, **{**common, **switch})
    for a, b in zip(run(first, pair), run(second, other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_closures_run_with_gradients_and_their_value_is_returned(build: Build, pair: Pair) -> None:
    optimizer = build(pair)
    seen: list[bool] = []

    def closure() -> str:
        seen.append(torch.is_grad_enabled())
        return "anything"

    with torch.no_grad():
        assert optimizer.step(closure) == "anything"
        assert not torch.is_grad_enabled()
    assert optimizer.step() is None
    assert seen == [True]


def test_results_do_not_depend_on_the_default_dtype(build: Build, pair: Pair) -> None:
    """Nor do the dtypes of the state."""
    other = fresh(pair)
    first = build(pair)
    expected = run(first, pair)
    torch.set_default_dtype(torch.float64)
    try:
        second = build(other)
        found = run(second, other)
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    for state, others in zip(first.state.values(), second.state.values(), strict=True):
        assert {n: v.dtype for n, v in state.items()} == {n: v.dtype for n, v in others.items()}


def test_added_groups_are_as_those_of_the_constructor(build: Build, pair: Pair) -> None:
    """Also when they come after the first step."""
    other = fresh(pair)
    together = build([{"params": [pair[0]]}, {"params": [pair[1]], "lr": 0.5, "eps": 0.1}])
    added = build([other[0]])
    added.add_param_group({"params": other[1], "lr": 0.5, "eps": 0.1})
    for a, b in zip(run(together, pair), run(added, other), strict=True):
        assert torch.equal(a, b)
    late = torch.ones(6, 40).requires_grad_()
    added.add_param_group({"params": [late]})
    late.grad = torch.randn(6, 40, generator=torch.Generator().manual_seed(5))
    added.step()
    assert set(added.state) == {*other, late}
    assert not torch.equal(late, torch.ones(6, 40))
