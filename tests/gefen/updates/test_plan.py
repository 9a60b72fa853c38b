"""What is kept between steps must never decide a result: every change from outside is noticed."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gefen import Gefen

SHAPES = ((40, 64), (300,), (3, 20, 32), (70, 96))
STEPS = 6


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]


def set_gradients(params: list[Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


def change_state(optimizer: Gefen, params: list[Tensor]) -> None:
    state = optimizer.state[params[0]]
    state["index"], state["scale"] = state["index"].clone(), state["scale"] * 2


def write_state(optimizer: Gefen, params: list[Tensor]) -> None:
    optimizer.state[params[3]]["column_mean"].mul_(3)


def set_step(optimizer: Gefen, params: list[Tensor]) -> None:
    optimizer.state[params[0]]["step"].fill_(1000)


def move_parameter(optimizer: Gefen, params: list[Tensor]) -> None:
    params[0].data = params[0].data.clone() + 1


def set_options(optimizer: Gefen, params: list[Tensor]) -> None:
    optimizer.param_groups[0].update(lr=0.5, betas=(0.5, 0.6), weight_decay=0.5, maximize=True)


def use_reference(optimizer: Gefen, params: list[Tensor]) -> None:
    optimizer.param_groups[0]["fused"] = False


def skip_one(optimizer: Gefen, params: list[Tensor]) -> None:
    params[1].grad = None


def turn_gradient(optimizer: Gefen, params: list[Tensor]) -> None:
    assert params[0].grad is not None
    params[0].grad = params[0].grad.t().contiguous().t()


def reload(optimizer: Gefen, params: list[Tensor]) -> None:
    saved = optimizer.state_dict()
    saved["state"][0]["scale"] = saved["state"][0]["scale"] * 2
    optimizer.load_state_dict(saved)


def add_group(optimizer: Gefen, params: list[Tensor]) -> None:
    params.append(torch.ones(20, 30).requires_grad_())
    params[-1].grad = torch.ones(20, 30)
    optimizer.add_param_group({"params": [params[-1]], "lr": 0.3, "min_quantized_size": 1})


def clear_state(optimizer: Gefen, params: list[Tensor]) -> None:
    optimizer.state[params[0]].clear()


def replace_memory_of_state(optimizer: Gefen, params: list[Tensor]) -> None:
    scale = optimizer.state[params[0]]["scale"]
    scale.data = scale.data * 2


def write_step_unseen(optimizer: Gefen, params: list[Tensor]) -> None:
    optimizer.state[params[0]]["step"].numpy().fill(1000)


def nothing(optimizer: Gefen, params: list[Tensor]) -> None:
    pass


CHANGES = [
    change_state,
    write_state,
    set_step,
    move_parameter,
    set_options,
    use_reference,
    skip_one,
    turn_gradient,
    reload,
    add_group,
    clear_state,
    replace_memory_of_state,
    write_step_unseen,
    nothing,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_kept_plan_gives_what_a_new_one_gives(change: Callable[..., None], bits: int) -> None:
    results = []
    for keep in (True, False):
        params = parameters()
        options: dict[str, Any] = {"lr": 0.01, "first_moment_bits": bits}
        optimizer = Gefen(params, min_quantized_size=1, **options)
        kept = []
        for step in range(STEPS):
            set_gradients(params, step)
            if step == 3:
                change(optimizer, params)
            if not keep:
                optimizer._stepper._plan = None
            before = optimizer._stepper._plan
            optimizer.step()
            kept.append(before is not None and before is optimizer._stepper._plan)
        results.append((params, optimizer.state_dict()["state"]))
        # A step in between would not show that anything is kept at all.
        assert kept[2] is keep
        assert kept[5] is keep
        assert kept[3] is (keep and change in (write_state, set_options, nothing))
    (ours, our_state), (theirs, their_state) = results
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    for number in our_state:
        for name, value in our_state[number].items():
            assert torch.equal(value, their_state[number][name]), name


def test_a_change_makes_a_difference() -> None:
    """The comparison above would pass if both sides ignored the change."""
    results = []
    for change in (nothing, *CHANGES[:5], clear_state):
        params = parameters()
        optimizer = Gefen(params, lr=0.01, min_quantized_size=1)
        for step in range(STEPS):
            set_gradients(params, step)
            if step == 3:
                change(optimizer, params)
            optimizer.step()
        results.append(torch.cat([param.detach().flatten() for param in params]))
    assert len({tuple(result.tolist()) for result in results}) == len(results)


def test_gradients_are_not_kept() -> None:
    """`zero_grad` has to free them: they are as large as the parameters."""
    params = parameters()
    optimizer = Gefen(params, min_quantized_size=1)
    for step in range(3):
        set_gradients(params, step)
        optimizer.step()
        alive = [weakref.ref(param.grad) for param in params]
        optimizer.zero_grad()
        assert not any(reference() is not None for reference in alive)


def test_state_that_was_moved_away_is_freed() -> None:
    params = parameters()
    optimizer = Gefen(params, min_quantized_size=1)
    set_gradients(params, 0)
    optimizer.step()
    state = optimizer.state[params[0]]
    alive = weakref.ref(state["index"])
    state["index"] = state["index"].clone()
    assert alive() is None


def test_a_turned_parameter_is_noticed() -> None:
    """The same address, number of elements and gradient, but other strides."""
    results = []
    for keep in (True, False):
        generator = torch.Generator().manual_seed(0)
        param = torch.randn(64, 64, generator=generator).requires_grad_()
        optimizer = Gefen([param], min_quantized_size=1)
        for step in range(4):
            param.grad = torch.randn(64, 64, generator=generator)
            if step == 2:
                param.data = param.data.t()
            if not keep:
                optimizer._stepper._plan = None
            optimizer.step()
        results.append(param.detach().clone())
    assert torch.equal(*results)


def test_backward_through_changed_parameters_is_refused() -> None:
    params = parameters()
    optimizer = Gefen(params, min_quantized_size=1)
    for step in range(2):
        loss = (params[0] ** 2).sum()
        set_gradients(params, step)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


class Wrapped(torch.Tensor):
    """A tensor that says where it lies only when asked through torch, as collectives' results."""

    @staticmethod
    def __new__(cls: "type[Wrapped]", value: Tensor) -> "Wrapped":
        wrapped: Wrapped = torch.Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype)
        wrapped.value = value
        return wrapped

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        def plain(value: Any) -> Any:
            return value.value if isinstance(value, Wrapped) else value

        return function(*map(plain, args), **(kwargs or {}))


@pytest.mark.parametrize("kind", ["wrapped", "negative"])
def test_gradients_that_have_no_address_are_left_to_the_reference(kind: str) -> None:
    results = []
    for special in (True, False):
        params = parameters()[:1]
        optimizer = Gefen(params, lr=0.01, min_quantized_size=1, fused=None if special else False)
        for step in range(3):
            set_gradients(params, step)
            grad = params[0].grad
            assert grad is not None
            if special and step == 1:
                # stored with the other sign, and marked, as the imaginary part of a conjugate is
                params[0].grad = Wrapped(grad) if kind == "wrapped" else torch._neg_view(-grad)
            optimizer.step()
        results.append(params[0].detach().clone())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
