"""DDP on two gloo ranks: the same parameters on both, and those of one process."""

from collections.abc import Callable

import pytest
import torch

from .results import Results

LR = 1e-2


@pytest.fixture(scope="module")
def found(launched: Callable[[str], Results]) -> Results:
    return launched("training_ranks.py")


@pytest.mark.parametrize("config", ["factored 8", "factored 4"])
def test_both_ranks_agree_bit_for_bit(found: Results, config: str) -> None:
    first, second = (result["training"][f"ddp {config}"] for result in found)
    for name, param in first["parameters"].items():
        assert torch.equal(param, second["parameters"][name]), name
        for key, value in first["state"][name].items():
            assert torch.equal(value, second["state"][name][key]), (name, key)


@pytest.mark.parametrize("config", ["factored 8", "factored 4"])
def test_the_loss_is_that_of_one_process(found: Results, config: str) -> None:
    alone = found[0]["training"][f"alone {config}"]
    ddp = found[0]["training"][f"ddp {config}"]
    # The halves of a batch are summed in another order; then a draw may fall the other way.
    torch.testing.assert_close(ddp["losses"], alone["losses"], rtol=0, atol=3e-4)
    for name, param in alone["parameters"].items():
        torch.testing.assert_close(ddp["parameters"][name], param, rtol=0, atol=LR / 2)
    assert alone["losses"][-1] < 0.7 * alone["losses"][0]


def test_a_nan_on_one_rank_skips_the_step_on_both(found: Results) -> None:
    # DDP adds the gradients up, so the NaN of rank 1 reaches rank 0 before the optimizer does.
    for result in found:
        assert result["skipped"]["ddp steps"] == 1
        for name, param in result["skipped"]["ddp before"].items():
            assert torch.equal(result["skipped"]["ddp after"][name], param), name
