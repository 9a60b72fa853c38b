"""Hooks, copies and state dictionaries over the table, after the generic tests of torch.optim."""

import io
import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from gefen import Gefen

Build = Callable[..., Gefen]
Pair = tuple[Tensor, Tensor]


def advance(optimizer: Optimizer, pair: Pair, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for param in pair:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


def assert_equal(first: Any, second: Any) -> None:
    """Equality of nested dictionaries and sequences, tensors bit for bit and of one dtype."""
    assert type(first) is type(second)
    if isinstance(first, Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_equal(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_equal(a, b)
    else:
        assert first == second


def assert_continue_equally(first: tuple[Gefen, Pair], second: tuple[Gefen, Pair]) -> None:
    """Two optimizers with equal pasts make the same further steps and share nothing."""
    before = [param.detach().clone() for param in second[1]]
    advance(*first, range(10, 13))
    for moved, param, value in zip(first[1], second[1], before, strict=True):
        assert torch.equal(param, value)
        assert not torch.equal(moved, value)
    advance(*second, range(10, 13))
    assert_equal(first[0].state_dict(), second[0].state_dict())
    for a, b in zip(first[1], second[1], strict=True):
        assert torch.equal(a, b)


def test_step_hooks_see_and_may_replace_the_arguments(build: Build, pair: Pair) -> None:
    """Own and global hooks, before and after, in torch's order; removed ones are silent."""
    optimizer = build(pair)
    log: list[str] = []

    def pre(name: str, replacement: Callable[[], float] | None = None) -> Callable[..., Any]:
        def hook(opt: Optimizer, args: Any, kwargs: Any) -> Any:
            assert opt is optimizer
            log.append(name)
            return None if replacement is None else ((opt, replacement), {})

        return hook

    def post(name: str) -> Callable[..., None]:
        return lambda opt, args, kwargs: log.append(name)

    handles = [
        register_optimizer_step_pre_hook(pre("global pre")),
        optimizer.register_step_pre_hook(pre("own pre", lambda: 7.0)),
        optimizer.register_step_post_hook(post("own post")),
        register_optimizer_step_post_hook(post("global post")),
    ]
    try:
        assert optimizer.step(lambda: 3.0) == 7.0
        assert log == ["global pre", "own pre", "own post", "global post"]
    finally:
        for handle in handles:
            handle.remove()
    assert optimizer.step(lambda: 3.0) == 3.0
    assert len(log) == 4


def test_state_dict_hooks_are_called_as_in_torch(build: Build, pair: Pair) -> None:
    """Before and after saving and loading; what they return is taken."""
    optimizer = build(pair)
    advance(optimizer, pair, range(2))
    log: list[str] = []

    def note(word: str) -> Callable[..., None]:
        return lambda *_: log.append(word)

    def add_key(_: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {**state_dict, "extra": 1}

    def other_rate(_: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        groups = [{**group, "lr": 0.75} for group in state_dict["param_groups"]]
        return {**state_dict, "param_groups": groups}

    plain = optimizer.state_dict()
    optimizer.register_state_dict_pre_hook(note("saving"))
    optimizer.register_state_dict_post_hook(note("saved 1"))
    optimizer.register_state_dict_post_hook(add_key)
    optimizer.register_load_state_dict_pre_hook(note("loading 2"))
    optimizer.register_load_state_dict_pre_hook(note("loading 1"), prepend=True)
    optimizer.register_load_state_dict_pre_hook(other_rate)
    optimizer.register_load_state_dict_post_hook(
        lambda o: log.append(f"loaded {len(o.state)} {o.param_groups[0]['lr']}")
    )
    saved = optimizer.state_dict()
    assert saved.pop("extra") == 1
    assert_equal(saved, plain)
    optimizer.load_state_dict(saved)
    assert log == ["saving", "saved 1", "loading 1", "loading 2", "loaded 2 0.75"]
    assert optimizer.param_groups[0]["lr"] == 0.75


def test_a_state_dict_looks_like_that_of_adamw(build: Build, pair: Pair) -> None:
    """Keys, parameter numbers in the order of the groups, and tensors alone in the state."""

    def groups() -> list[dict[str, Any]]:
        return [{"params": [pair[1]], "mine": 1}, {"params": [pair[0]]}]

    ours, theirs = build(groups()), AdamW(groups())
    assert ours.state_dict()["state"] == theirs.state_dict()["state"] == {}
    advance(ours, pair, range(1))
    advance(theirs, pair, range(1))
    mine, others = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(others)
    assert list(mine["state"]) == list(others["state"])
    assert [g["params"] for g in mine["param_groups"]] == [
        g["params"] for g in others["param_groups"]
    ]
    assert mine["param_groups"][0]["mine"] == 1
    assert mine["state"][1]["step"].dtype == others["state"][1]["step"].dtype
    assert all(isinstance(v, Tensor) for entry in mine["state"].values() for v in entry.values())


def test_a_state_dict_continues_a_run_and_is_not_changed_by_it(build: Build, pair: Pair) -> None:
    """Through torch.save, with weights_only, into an optimizer over equal parameters."""
    optimizer = build(pair)
    advance(optimizer, pair, range(5))
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    state_dict = torch.load(buffer, weights_only=True)
    assert_equal(state_dict, optimizer.state_dict())
    kept, other = deepcopy(state_dict), deepcopy(pair)
    loaded = build(other)
    loaded.load_state_dict(state_dict)
    assert_continue_equally((optimizer, pair), (loaded, other))
    assert_equal(state_dict, kept)


@pytest.mark.parametrize(
    "copy", [deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("steps", [0, 3])
def test_copies_continue_equally(
    build: Build, pair: Pair, copy: Callable[[Any], Any], steps: int
) -> None:
    optimizer = build(pair)
    advance(optimizer, pair, range(steps))
    other, other_pair = copy((optimizer, pair))
    assert other.param_groups[0]["params"][0] is other_pair[0]
    public = {key for key in vars(optimizer) if not key.startswith("_")}
    assert public == {key for key in vars(other) if not key.startswith("_")}
    assert_continue_equally((optimizer, pair), (other, other_pair))


def test_state_is_matched_by_position_as_in_adamw(build: Build) -> None:
    """Groups in another order than the model, one group left out: what AdamW does with them."""
    params = [torch.full((7, 32), float(n)).requires_grad_() for n in range(3)]
    loaded: list[list[float]] = []
    for construct in (build, AdamW):
        saver = construct([{"params": params[:1], "lr": 0.1}, {"params": params[1:], "lr": 0.2}])
        for number, param in enumerate(params):
            param.grad = torch.full((7, 32), 2.0**number)
        saver.step()
        shuffled = [{"params": params[2:]}, {"params": [params[1], params[0]]}]
        reader = construct(shuffled)
        reader.load_state_dict(saver.state_dict())
        found = []
        for param in params:
            candidates = [saver.state[source] for source in params]
            equal = [
                all(torch.equal(reader.state[param][key], state[key]) for key in state)
                for state in candidates
            ]
            found.append(float(equal.index(True)))
        loaded.append(found + [group["lr"] for group in reader.param_groups])
    assert loaded[0] == loaded[1]
    assert loaded[0][:3] == [2.0, 1.0, 0.0]


@pytest.mark.parametrize("saved_names", [False, True])
@pytest.mark.parametrize("own_names", [False, True])
def test_names_load_as_in_adamw(
    build: Build, pair: Pair, saved_names: bool, own_names: bool
) -> None:
    def form(names: tuple[str, str] | None) -> Any:
        return pair if names is None else list(zip(names, pair, strict=True))

    found = []
    for construct in (build, AdamW):
        saver = construct(form(("weight", "bias") if saved_names else None), lr=0.5)
        reader = construct(form(("kernel", "offset") if own_names else None))
        reader.load_state_dict(saver.state_dict())
        found.append([group.get("param_names") for group in reader.param_groups])
        assert reader.param_groups[0]["lr"] == 0.5
    assert found[0] == found[1]


def test_names_do_not_change_the_steps(build: Build, pair: Pair) -> None:
    other = deepcopy(pair)
    named, unnamed = build([("weight", pair[0]), ("bias", pair[1])]), build(other)
    assert named.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
    advance(named, pair, range(3))
    advance(unnamed, other, range(3))
    for a, b in zip(pair, other, strict=True):
        assert torch.equal(a, b)
    assert_equal(named.state_dict()["state"], unnamed.state_dict()["state"])


def test_state_of_a_step_more_does_not_reach_an_older_copy(build: Build, pair: Pair) -> None:
    """As with AdamW a state_dict holds the live tensors; a deep copy of it is a snapshot."""
    optimizer = build(pair)
    advance(optimizer, pair, range(2))
    live = optimizer.state_dict()["state"][0]["step"]
    snapshot = deepcopy(optimizer.state_dict())
    advance(optimizer, pair, range(2, 3))
    assert int(optimizer.state_dict()["state"][0]["step"]) == 3
    assert int(snapshot["state"][0]["step"]) == 2
    assert int(live) == 3
