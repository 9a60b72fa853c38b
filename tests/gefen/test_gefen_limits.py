"""Gradients at the limits: factors that do not fit, first steps that say little, huge values."""

import pytest
import torch
from torch import nn

from gefen import Gefen
from gefen.codebook import BINS
from gefen.shared_codebook import with_floor


def normal(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_no_element_moves_by_more_than_lr(bits: int) -> None:
    """Two blocks of very different size, then one gradient where a new row meets a new column.

    The product of the factors is far below the square there: without a bound, thousands of lr.
    """
    param = torch.zeros(128, 128, requires_grad=True)
    optimizer = Gefen([param], lr=1.0, weight_decay=0.0, first_moment_bits=bits)
    for step in range(30):
        grad = torch.zeros(128, 128)
        grad[:64, :64] = normal((64, 64), step)
        grad[64:100, 64:100] = 1e-3 * normal((36, 36), step + 100)
        if step == 20:
            grad[120, 120] = 1e-2
        before = param.detach().clone()
        param.grad = grad
        optimizer.step()
        moved = (param.detach() - before).abs()
        assert moved.max() <= 1 + 1e-6
        assert moved.max() > 0.5
    unbounded = type("Unbounded", (Gefen,), {"_rule": Gefen._rule.__class__(cap=None)})
    other = torch.zeros(128, 128, requires_grad=True)
    other.grad = torch.zeros(128, 128)
    other.grad[:64, :64], other.grad[64:, 64:] = normal((64, 64), 0), 1e-3 * normal((64, 64), 1)
    unbounded([other], lr=1.0, weight_decay=0.0, first_moment_bits=bits).step()
    assert other.detach().abs().max() > 100


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("first", ["sign", "rank one"])
def test_a_poor_first_gradient_leaves_a_useful_codebook(bits: int, first: str) -> None:
    """A batch of one gives a gradient of rank one, which falls into the two outermost bins."""
    ours, theirs = (torch.zeros(64, 128, requires_grad=True) for _ in range(2))
    optimizers = (
        Gefen([ours], lr=1.0, weight_decay=0.0, first_moment_bits=bits),
        torch.optim.AdamW([theirs], lr=1.0, weight_decay=0.0),
    )
    outer = normal((64, 1), 1) * normal((1, 128), 2)
    ratios = []
    for step in range(40):
        grad = normal((64, 128), step)
        if step == 0:
            grad = grad.sign() if first == "sign" else outer
        befores = ours.detach().clone(), theirs.detach().clone()
        for param, optimizer in zip((ours, theirs), optimizers, strict=True):
            param.grad = grad.clone()
            optimizer.step()
        moves = [(p.detach() - b) for p, b in zip((ours, theirs), befores, strict=True)]
        ratios.append(float(moves[0].norm() / moves[1].norm()))
    assert len(optimizers[0].state[ours]["codebook"].unique()) > 2 ** (bits - 1)
    assert max(ratios[10:]) < (1.3 if bits == 4 else 1.1)
    assert min(ratios[10:]) > 0.9


@pytest.mark.parametrize("total", [2, 5000, 10**7, 2**33])
def test_the_floor_is_one_in_a_hundred(total: int) -> None:
    histogram = torch.zeros(BINS, dtype=torch.int64)
    histogram[0], histogram[-1] = total // 2, total - total // 2
    found = with_floor(histogram)
    assert found.min() >= 1
    share = found[1:-1].sum().item() / found.sum().item()
    assert 0.008 < share < 0.011
    assert found.sum().item() < 2**40


@pytest.mark.parametrize("size", [1e15, 1e20, 1e37])
@pytest.mark.parametrize("second_moment", ["factored", "block"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_huge_finite_gradients_leave_everything_finite(
    size: float, second_moment: str, dtype: torch.dtype
) -> None:
    """Squares beyond float32 included; AdamW's parameters stay finite too."""
    param = torch.zeros(64, 128, dtype=dtype, requires_grad=True)
    optimizer = Gefen([param], second_moment=second_moment)
    for step in range(5):
        param.grad = normal((64, 128), step).to(dtype)
        if step == 2:
            param.grad[3, 5] = size
        optimizer.step()
        assert param.isfinite().all()
        for value in optimizer.state[param].values():
            assert value.isfinite().all()


@pytest.mark.parametrize("second_moment", ["factored", "block"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_non_finite_value_spoils_its_group_alone(second_moment: str, bad: float) -> None:
    param = torch.zeros(64, 128, requires_grad=True)
    optimizer = Gefen([param], second_moment=second_moment)
    for step in range(6):
        param.grad = normal((64, 128), step)
        if step == 3:
            param.grad[3, 5] = bad
        optimizer.step()
    others = torch.arange(64) != 3
    assert not param[3, 5].isfinite()
    assert param[others].isfinite().all()
    assert param[others].any()


@pytest.mark.parametrize("saved", [True, False])
def test_loading_takes_the_saved_capturable_over(saved: bool) -> None:
    """As torch's own load_state_dict does, and `step` lies where that mode needs it."""
    small = nn.Parameter(torch.zeros(4, device="meta"))
    optimizer = Gefen([small], capturable=not saved)
    state_dict = Gefen([nn.Parameter(torch.zeros(4))], capturable=saved).state_dict()
    state_dict["state"][0] = {
        "step": torch.tensor(1.0),
        "exp_avg": torch.zeros(4),
        "exp_avg_sq": torch.zeros(4),
    }
    optimizer.load_state_dict(state_dict)
    assert optimizer.param_groups[0]["capturable"] is saved
    assert optimizer.state[small]["step"].device.type == ("meta" if saved else "cpu")


def test_skipping_and_capturing_are_refused_across_groups() -> None:
    first, second = (nn.Parameter(torch.zeros(4)) for _ in range(2))
    groups = [
        {"params": [first], "skip_nonfinite": True},
        {"params": [second], "capturable": True},
    ]
    with pytest.raises(ValueError, match="skip_nonfinite=True"):
        Gefen(groups)
    optimizer = Gefen(groups[:1])
    with pytest.raises(ValueError, match="skip_nonfinite=True"):
        optimizer.add_param_group(groups[1])
    assert len(optimizer.param_groups) == 1


def test_depthwise_weights_need_about_a_byte_an_element() -> None:
    """(channels, 1, kernel): an index of dimension 0 is a row, not an expert."""
    param = nn.Parameter(torch.zeros(2048, 1, 32))
    param.grad = normal((2048, 1, 32), 0)
    optimizer = Gefen([param])
    optimizer.step()
    tensors = [t for n, t in optimizer.state[param].items() if n != "codebook"]
    assert sum(t.numel() * t.element_size() for t in tensors) / param.numel() < 1.3
