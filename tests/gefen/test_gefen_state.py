"""State: its bytes, copies, checkpoints and what a checkpoint is refused for."""

import copy
import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gefen import Gefen, state_bytes

OTHER_CODEBOOK = torch.cat([torch.linspace(-1, 0, 128), torch.linspace(0, 1, 129)[1:]])
SHAPES = [(96, 100), (5, 20, 64), (64, 8, 3, 3), (300,), (7, 9), ()]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def train(
    params: list[nn.Parameter], optimizer: torch.optim.Optimizer, first: int, last: int
) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


def counted_bytes(optimizer: torch.optim.Optimizer) -> int:
    storages = {}
    for state in optimizer.state.values():
        for value in state.values():
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def saved(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Through a file's bytes, with the safe loader."""
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same_state(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> None:
    for (p, first), (q, second) in zip(a.state.items(), b.state.items(), strict=True):
        assert torch.equal(p, q)
        assert first.keys() == second.keys()
        for name in first:
            assert first[name].dtype == second[name].dtype, name
            assert torch.equal(first[name], second[name]), name


def assert_one_codebook(optimizer: torch.optim.Optimizer) -> None:
    found = [s["codebook"].data_ptr() for s in optimizer.state.values() if "codebook" in s]
    assert len(found) == 3
    assert len(set(found)) == 1


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(
        st.one_of(
            st.tuples(),
            st.tuples(st.integers(0, 300)),
            st.tuples(st.integers(0, 40), st.integers(1, 40)),
            st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 40)),
            st.tuples(st.integers(1, 8), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
        ),
        min_size=1,
        max_size=4,
    ),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    bits=st.sampled_from([4, 8, 32]),
    second_moment=st.sampled_from(["factored", "block"]),
    block_size=st.integers(1, 50),
    group_size=st.one_of(st.none(), st.integers(1, 50)),
    smallest=st.sampled_from([1, 100]),
)
def test_bytes_equal_the_closed_form(
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
    bits: int,
    second_moment: str,
    block_size: int,
    group_size: int | None,
    smallest: int,
) -> None:
    options: dict[str, Any] = {
        "first_moment_bits": bits,
        "second_moment": second_moment,
        "group_size": group_size,
        "block_size": block_size,
        "min_quantized_size": smallest,
    }
    params = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in shapes]
    optimizer = Gefen(params, **options)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        assert counted_bytes(optimizer) == state_bytes(shapes, **options)


@pytest.mark.parametrize("second_moment", ["factored", "block"])
def test_layout_of_the_state(second_moment: str) -> None:
    params = parameters(torch.bfloat16)
    optimizer = Gefen(params, second_moment=second_moment)
    train(params, optimizer, 0, 2)
    expected = {
        (96, 100): (96, 1),
        (5, 20, 64): (5, 20, 1),
        (64, 8, 3, 3): (64, 1),
    }
    for param in params:
        state = optimizer.state[param]
        assert state["step"].dtype == torch.float32
        assert state["step"].shape == ()
        assert state["step"] == 2
        if tuple(param.shape) not in expected:
            assert {state["exp_avg"].dtype, state["exp_avg_sq"].dtype} == {torch.float32}
            continue
        blocks = expected[tuple(param.shape)]
        layout = {name: (tuple(value.shape), value.dtype) for name, value in state.items()}
        rows, columns = blocks[:-1], param.numel() // blocks[-2] // (5 if param.ndim == 3 else 1)
        factors = {
            "row_mean": (rows, torch.float32),
            "column_mean": ((*rows[:-1], columns), torch.float32),
        }
        assert layout == {
            "step": ((), torch.float32),
            "index": (tuple(param.shape), torch.uint8),
            "scale": (blocks, torch.float32),
            "codebook": ((256,), torch.float32),
            **(
                factors
                if second_moment == "factored"
                else {"second_moment": (blocks, torch.float32)}
            ),
        }
    assert_one_codebook(optimizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bits", [8, 32])
def test_resume_is_bit_for_bit(dtype: torch.dtype, bits: int) -> None:
    straight, resumed = parameters(dtype), parameters(dtype)
    first = Gefen(straight, lr=0.01, first_moment_bits=bits)
    train(straight, first, 0, 4)
    checkpoint = saved(first)
    with torch.no_grad():
        for source, target in zip(straight, resumed, strict=True):
            target.copy_(source)
    second = Gefen(resumed, lr=0.5, first_moment_bits=bits)
    train(resumed, second, 7, 9)  # state that loading must replace entirely
    with torch.no_grad():
        for source, target in zip(straight, resumed, strict=True):
            target.copy_(source)
    second.load_state_dict(checkpoint)
    assert_same_state(first, second)
    train(straight, first, 4, 8)
    train(resumed, second, 4, 8)
    assert_same_state(first, second)
    if bits == 8:
        assert_one_codebook(second)


def test_loading_copies() -> None:
    """Two optimizers over one state_dict do not write to each other's state."""
    params, others = parameters(), parameters()
    optimizer, other = Gefen(params), Gefen(others)
    train(params, optimizer, 0, 2)
    other.load_state_dict(optimizer.state_dict())
    train(params, optimizer, 2, 3)
    train(others, other, 2, 4)
    assert optimizer.state[params[0]]["step"] == 3
    assert other.state[others[0]]["step"] == 4
    shared = {value.data_ptr() for s in optimizer.state.values() for value in s.values()}
    assert not shared & {value.data_ptr() for s in other.state.values() for value in s.values()}


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))]
)
def test_copies_go_on_alike(duplicate: Callable[[Any], Any]) -> None:
    params = parameters()
    optimizer = Gefen(params, lr=0.01)
    train(params, optimizer, 0, 2)
    others, other = duplicate((params, optimizer))
    assert_one_codebook(other)
    assert counted_bytes(other) == counted_bytes(optimizer)
    train(params, optimizer, 2, 4)
    train(others, other, 2, 4)
    assert_same_state(optimizer, other)


def test_untrained_state_loads_and_then_learns() -> None:
    """A zero-gradient step creates state of the final shapes, as checkpointing tools do."""
    params, others = parameters(), parameters()
    optimizer, other = Gefen(params), Gefen(others)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    before = {name: value.shape for name, value in optimizer.state[params[0]].items()}
    other.load_state_dict(saved(optimizer))
    train(others, other, 0, 1)
    assert {name: value.shape for name, value in other.state[others[0]].items()} == before
    assert other.state[others[0]]["codebook"][0] == -1
    assert_one_codebook(other)
    empty = Gefen(parameters())
    empty.load_state_dict(saved(Gefen(parameters())))
    assert not empty.state


def test_distributed_checkpoint_functions() -> None:
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    def build() -> tuple[nn.Module, Gefen]:
        model = nn.Sequential(nn.Linear(80, 90), nn.Linear(90, 60)).to(torch.bfloat16)
        return model, Gefen(model.parameters())

    model, optimizer = build()
    train(list(model.parameters()), optimizer, 0, 3)
    other_model, other = build()
    other_model.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other_model, other, get_optimizer_state_dict(model, optimizer))
    assert_same_state(optimizer, other)
    train(list(model.parameters()), optimizer, 3, 5)
    train(list(other_model.parameters()), other, 3, 5)
    assert_same_state(optimizer, other)


def test_hooks_see_the_loaded_state() -> None:
    params, others = parameters(), parameters()
    optimizer, other = Gefen(params), Gefen(others)
    train(params, optimizer, 0, 1)
    seen = []

    def halve(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        groups = [{**group, "lr": 0.5} for group in state_dict["param_groups"]]
        return {**state_dict, "param_groups": groups}

    other.register_load_state_dict_pre_hook(halve)
    other.register_load_state_dict_post_hook(lambda o: seen.append(len(o.state)))
    other.load_state_dict(optimizer.state_dict())
    assert seen == [len(params)]
    assert other.param_groups[0]["lr"] == 0.5
    other.load_state_dict(optimizer.state_dict())
    assert seen == [len(params)] * 2


def edit(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set an entry of parameter 0's state, or delete it with `value` None."""

    def apply(state_dict: dict[str, Any]) -> None:
        if value is None:
            del state_dict["state"][0][path]
        else:
            state_dict["state"][0][path] = value

    return apply


def edit_all_codebooks(value: Tensor) -> Callable[[dict[str, Any]], None]:
    def apply(state_dict: dict[str, Any]) -> None:
        for entry in state_dict["state"].values():
            if "codebook" in entry:
                entry["codebook"] = value

    return apply


def edit_group(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state_dict: state_dict["param_groups"][0].update({key: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit("codebook", None), "no codebook"),
        (edit_all_codebooks(torch.zeros(256)), "no codebook"),
        (edit_all_codebooks(torch.linspace(-1, 1, 256)), "does not rise from -1 through 0 to 1"),
        (edit("codebook", OTHER_CODEBOOK), "another codebook"),
        (edit("index", torch.zeros(96, 100, dtype=torch.bfloat16)), "torch.bfloat16 of shape"),
        (edit("index", torch.zeros(100, 96, dtype=torch.uint8)), "(100, 96)"),
        (edit("scale", torch.zeros(96, 2)), "'scale' of parameter 0"),
        (edit("row_mean", None), "no tensor as 'row_mean'"),
        (edit("column_mean", torch.zeros(96)), "'column_mean' of parameter 0"),
        (edit_group("second_moment", "block"), "second_moment = 'block'"),
        (edit_group("group_size", 64), "group_size = 64"),
        (edit_group("first_moment_bits", 32), "first_moment_bits = 32"),
        (edit_group("block_size", 64), "block_size = 64"),
        (edit_group("min_quantized_size", 1), "min_quantized_size = 1"),
        (edit_group("params", [0, 1]), "groups of [2] parameters"),
        (edit_group("amsgrad", True), "amsgrad=True"),
    ],
)
def test_state_that_does_not_fit_is_refused_before_any_change(
    damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    params, others = parameters(), parameters()
    optimizer, other = Gefen(params, lr=0.3), Gefen(others, lr=0.1)
    train(params, optimizer, 0, 2)
    train(others, other, 5, 6)
    kept = copy.deepcopy((others, other))
    state_dict = saved(optimizer)
    damage(state_dict)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        other.load_state_dict(state_dict)
    assert "\n" not in str(caught.value)
    assert other.param_groups[0]["lr"] == 0.1
    assert_same_state(other, kept[1])
    train(others, other, 6, 7)
    train(kept[0], kept[1], 6, 7)
    assert_same_state(other, kept[1])


def test_state_of_adamw_is_refused() -> None:
    params = parameters()
    adamw = torch.optim.AdamW(params)
    train(params, adamw, 0, 1)
    with pytest.raises(ValueError, match="first_moment_bits = None"):
        Gefen(parameters()).load_state_dict(adamw.state_dict())
