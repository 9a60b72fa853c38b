"""Loading: torch's base class casts state to the parameter's dtype; ours moves devices only."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from .ours import advance, every_option, noise, ours
from .published import PublishedInterface


class Model(nn.Module):
    """A quantised matrix and a small vector, in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))
        self.vector = nn.Parameter(torch.zeros(64, dtype=torch.bfloat16))


def step(model: Model, optimizer: torch.optim.Optimizer, number: int) -> None:
    model.vector.grad = noise(1, 64, seed=number + 100)[0].bfloat16()
    advance(optimizer, model.matrix, noise(1, 64, 64, seed=number)[0].bfloat16())


def through_a_file(content: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        assert torch.equal(value, second[name]), name


def test_published_loading_turns_codes_into_bfloat16() -> None:
    model = Model()
    optimizer = PublishedInterface(model.parameters())
    step(model, optimizer, 0)
    fresh = PublishedInterface(model.parameters())
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    before, after = optimizer.state[model.matrix], fresh.state[model.matrix]
    assert before["index"].dtype == torch.uint8
    assert after["index"].dtype == torch.bfloat16
    assert before["second_moment"].dtype == torch.float32
    assert not torch.equal(before["second_moment"], after["second_moment"].float())


@every_option
@pytest.mark.parametrize("route", ["load_state_dict", "set_optimizer_state_dict"])
def test_ours_loads_every_bit_and_continues(second_moment: str, bits: int, route: str) -> None:
    model, copy = Model(), Model()
    optimizer = ours(list(model.parameters()), second_moment, bits)
    for number in range(3):
        step(model, optimizer, number)
    copy.load_state_dict(model.state_dict())
    fresh = ours(list(copy.parameters()), second_moment, bits)
    if route == "load_state_dict":
        fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    else:
        content = through_a_file(get_optimizer_state_dict(model, optimizer))
        set_optimizer_state_dict(copy, fresh, content)
    for own, new in zip(model.parameters(), copy.parameters(), strict=True):
        assert_same_bits(optimizer.state[own], fresh.state[new])
    dtypes = {value.dtype for value in fresh.state[copy.matrix].values()}
    assert dtypes == ({torch.float32} if bits == 32 else {torch.uint8, torch.float32})
    for number in range(3, 5):
        step(model, optimizer, number)
        step(copy, fresh, number)
    assert_same_bits(model.state_dict(), copy.state_dict())
