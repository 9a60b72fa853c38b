"""Optimizer state through torch.distributed.checkpoint, from two gloo ranks to one and back.

The gradients are the same however many ranks there are, so a resumed run must continue bit for
bit as an unbroken one, on any number of ranks.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from .results import CONFIGS, Results, assert_same


@pytest.fixture(scope="module")
def found(launched: Callable[[str], Results]) -> Results:
    return launched("checkpoint_ranks.py")


def resumed_and_source(
    found: Results, way: str, config: str
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return (resumed run, run that was saved) of each rank that took part."""
    source = found[0][f"{'one' if way.startswith('1') else 'two'} {config}"]
    ranks = found if way.endswith("2") else found[:1]
    return [(result[f"{way} {config}"], source) for result in ranks]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("way", ["2 to 2", "1 to 2", "2 to 1"])
def test_restored_state_is_the_saved_one(found: Results, way: str, config: str) -> None:
    for resumed, source in resumed_and_source(found, way, config):
        assert_same(resumed["restored"], source["saved"])
        index = resumed["restored"]["state"]["experts"]["index"]
        assert index.dtype == torch.uint8
        assert bool(index.any())
        assert bool(resumed["restored"]["state"]["experts"]["codebook"].any())


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("way", ["2 to 2", "1 to 2", "2 to 1"])
def test_a_resumed_run_continues_as_an_unbroken_one(found: Results, way: str, config: str) -> None:
    for resumed, source in resumed_and_source(found, way, config):
        assert_same(resumed["end"], source["end"])
        for name, param in source["saved"]["parameters"].items():
            assert not torch.equal(param, source["end"]["parameters"][name]), name


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("way", ["2 to 2", "1 to 2", "2 to 1"])
def test_the_codebook_is_shared_again(found: Results, way: str, config: str) -> None:
    for resumed, _ in resumed_and_source(found, way, config):
        assert resumed["codebooks"] == 1


@pytest.mark.parametrize("config", CONFIGS)
def test_loaded_state_is_placed_as_its_parameters(found: Results, config: str) -> None:
    for result in found:
        for way in ("2 to 2", "1 to 2"):
            placed = result[f"{way} {config}"]["kinds"]
            for (name, key), kind in placed.items():
                columns_apart = key == "column_mean" and "expert" not in name
                replicated = key == "codebook" or columns_apart
                whole = "(Replicate(),)" if replicated else "(Shard(dim=0),)"
                assert kind == ("plain" if key == "step" else whole), (name, key)
    assert set(found[0][f"2 to 1 {config}"]["kinds"].values()) == {"plain"}


def test_a_whole_state_dict_is_gathered_and_broadcast(found: Results) -> None:
    for result in found:
        full = result["full"]
        assert_same(full["resumed"]["restored"], full["saved"])
        assert_same(full["resumed"]["end"], full["end"])
        assert full["resumed"]["codebooks"] == 1
        assert full["resumed"]["kinds"] == full["expected kinds"]


@pytest.mark.parametrize("way", ["plain to sharded", "sharded to plain", "replicated to sharded"])
def test_state_of_another_kind_is_refused(found: Results, way: str) -> None:
    for result in found:
        text, before, after = result["refusals"][way]
        assert text.startswith("The state_dict has "), text
        assert text.endswith(".")
        assert ". " not in text
        assert_same(after, before)
