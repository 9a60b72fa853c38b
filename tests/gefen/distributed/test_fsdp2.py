"""FSDP2 (`fully_shard`) on two gloo ranks: does what one process does, with state in shards.

With equal gradients two ranks must do bit for bit what one does: rows, groups and random bits
depend on the place in the whole parameter, and column sums are rounded to float32 only when whole.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard

from .results import CONFIGS, Results, assert_same

LR = 1e-2


@pytest.fixture(scope="module")
def found(launched: Callable[[str], Results]) -> Results:
    return launched("training_ranks.py")


@pytest.mark.parametrize("config", [*CONFIGS, "factored 8 bfloat16"])
def test_equal_gradients_give_what_one_process_gets(found: Results, config: str) -> None:
    alone = found[0]["same"][f"alone {config}"]
    dtype = torch.bfloat16 if "bfloat16" in config else torch.float32
    assert {param.dtype for param in alone["parameters"].values()} == {dtype}
    for result in found:
        assert_same(result["same"][f"fsdp {config}"], alone)


def test_forms_beside_each_other_give_what_one_process_gets(found: Results) -> None:
    for result in found:
        assert_same(result["same"]["fsdp mixed bits"], found[0]["same"]["alone mixed bits"])


def test_a_partly_sharded_model_learns_a_codebook_for_each_kind(found: Results) -> None:
    """Plain parameters have their own, so that every rank of a mesh agrees on the mesh's."""
    ranks = [result["same"]["partly sharded"] for result in found]
    assert_same(ranks[0], ranks[1])
    alone = found[0]["same"]["alone factored 4"]
    books = {tuple(s["codebook"].tolist()) for s in ranks[0]["state"].values() if "codebook" in s}
    assert len(books) == 2
    for name, param in alone["parameters"].items():
        # Other levels and so other draws; the steps stay the same but for rounding.
        torch.testing.assert_close(ranks[0]["parameters"][name], param, rtol=0, atol=LR)


@pytest.mark.parametrize("model", ["replicated", "replicas of one"])
def test_other_meshes_give_what_one_process_gets(found: Results, model: str) -> None:
    for result in found:
        assert_same(result["same"][model], found[0]["same"]["alone factored 4"])


@pytest.mark.parametrize("config", CONFIGS)
def test_the_loss_follows_one_process(found: Results, config: str) -> None:
    alone = found[0]["training"][f"alone {config}"]
    for result in found:
        fsdp = result["training"][f"fsdp {config}"]
        # The halves of a batch are summed in another order; then a draw may fall the other way.
        torch.testing.assert_close(fsdp["losses"], alone["losses"], rtol=0, atol=3e-4)
        for name, param in alone["parameters"].items():
            torch.testing.assert_close(fsdp["parameters"][name], param, rtol=0, atol=LR / 2)
    assert alone["losses"][-1] < 0.7 * alone["losses"][0]


def test_bfloat16_by_policy(found: Results) -> None:
    policy = found[1]["training"]["policy"]
    alone = found[0]["training"]["alone factored 8"]
    assert {param.dtype for param in policy["parameters"].values()} == {torch.float32}
    dtypes = {value.dtype for state in policy["state"].values() for value in state.values()}
    assert dtypes == {torch.float32, torch.uint8}
    # bfloat16 has 8 bits: losses of about 4 differ by some hundredths at most, but do differ
    difference = (policy["losses"] - alone["losses"]).abs().max()
    assert 0 < difference < 0.02


def expected_state(shape: tuple[int, ...], config: str) -> dict[str, tuple[Any, int]]:
    """Return state name -> (placement, bytes of the whole).

    Written from the closed form of the design: n elements in rows of C, experts E.
    """
    size = math.prod(shape)
    if len(shape) < 2 or size < 4096:
        return {name: (Shard(0), 4 * size) for name in ("exp_avg", "exp_avg_sq")}
    columns = shape[2] if len(shape) == 3 else size // shape[0]
    rows = size // columns
    experts = shape[0] if len(shape) == 3 else 1
    eight = config.endswith("8")
    index = size if eight else rows * -(-columns // 2)
    groups = -(-columns // (2048 if eight else 64))
    state: dict[str, tuple[Any, int]] = {
        "index": (Shard(0), index),
        "scale": (Shard(0), 4 * rows * groups),
        "codebook": (Replicate(), 4 * (256 if eight else 16)),
    }
    if config.startswith("block"):
        return state | {"second_moment": (Shard(0), 4 * rows * -(-columns // 2048))}
    placement = Shard(0) if len(shape) == 3 else Replicate()
    return state | {
        "row_mean": (Shard(0), 4 * rows),
        "column_mean": (placement, 4 * columns * experts),
    }


@pytest.mark.parametrize("config", CONFIGS)
def test_state_is_in_shards_of_the_closed_form(found: Results, config: str) -> None:
    layouts = [result["same"][f"layout {config}"] for result in found]
    seen = set()
    for name, first in layouts[0].items():
        expected = expected_state(first["shape"], config)
        assert {key for key in first if key not in ("rows", "shape")} == {"step", *expected}
        rows = [layout[name]["rows"] for layout in layouts]
        assert sum(rows) == first["shape"][0]
        for key, (placement, size) in expected.items():
            parts = [layout[name][key] for layout in layouts]
            seen.add((key, str(placement)))
            for part, own_rows in zip(parts, rows, strict=True):
                assert part["placements"] == (placement,), (name, key)
                assert part["same mesh"], (name, key)
                assert part["dtype"] == (torch.uint8 if key == "index" else torch.float32)
                if placement == Shard(0):
                    assert part["rows"] == own_rows, (name, key)
            if placement == Replicate():
                assert [part["bytes"] for part in parts] == [size, size], (name, key)
            else:
                assert sum(part["bytes"] for part in parts) == size, (name, key)
        for layout in layouts:
            assert layout[name]["step"]["placements"] is None
            assert layout[name]["step"]["bytes"] == 4
    assert len(seen) >= 5


@pytest.mark.parametrize("config", CONFIGS)
def test_one_codebook_a_rank(found: Results, config: str) -> None:
    for result in found:
        states = result["same"][f"layout {config}"].values()
        storages = [state["codebook"]["storage"] for state in states if "codebook" in state]
        assert len(storages) == 6
        assert len(set(storages)) == 1
    books = [
        state["codebook"]
        for result in found
        for state in result["same"][f"fsdp {config}"]["state"].values()
        if "codebook" in state
    ]
    assert bool(books[0].any())
    assert all(torch.equal(book, books[0]) for book in books)


@pytest.mark.parametrize("model", [f"fsdp {config}" for config in CONFIGS] + ["partly sharded"])
def test_collectives_of_a_step(found: Results, model: str) -> None:
    # the codebook costs the first step one; the column statistics every step one
    each = {} if model == "fsdp block 8" else {"allreduce_": 1}
    first = {"allreduce_": 1 + each.get("allreduce_", 0)}
    for result in found:
        assert result["same"][model]["collectives"] == [first, each, each, each, each]


def test_meshes_that_cut_nothing_need_no_collective(found: Results) -> None:
    for result in found:
        assert not any(result["same"]["replicated"]["collectives"])
    for config in CONFIGS:
        assert not any(found[0]["same"][f"alone {config}"]["collectives"])


def test_a_nan_on_one_rank_skips_the_step_on_both(found: Results) -> None:
    for result in found:
        skipped = result["skipped"]
        assert skipped["steps"] == 1
        first, nan, third = skipped["after"]
        assert_same(nan, first)
        for name, param in third["parameters"].items():
            assert bool(param.isfinite().all()), name
            assert not torch.equal(param, first["parameters"][name]), name
        # one for the flag, one for the columns
        assert skipped["last counts"] == {"allreduce_": 2}
    assert_same(found[1]["skipped"]["after"][2], found[0]["skipped"]["after"][2])


def test_zero_gradients_create_the_state_and_do_nothing_else(found: Results) -> None:
    for result in found:
        before, after = result["idle"]["before"], result["idle"]["after"]
        for name, param in before.items():
            assert torch.equal(after["parameters"][name], param), name
        for name, state in after["state"].items():
            values: dict[str, Tensor] = {key: v for key, v in state.items() if key != "step"}
            assert len(values) >= 2, name
            assert not any(value.any() for value in values.values()), name
            assert state["step"].item() == (0 if "codebook" in state else 1), name


def test_refusals_in_one_sentence(found: Results) -> None:
    for result in found:
        refusals = result["refusals"]
        for rule in ("paper", "peak"):
            assert f"second_moment='{rule}'" in refusals[rule]
            assert "'factored' or 'block' for DTensor parameters" in refusals[rule]
        assert "Shard(dim=1)" in refusals["columns"]
        assert "Replicate() or Shard(0)" in refusals["columns"]
        for text in refusals.values():
            assert text.endswith(".")
            assert ". " not in text
