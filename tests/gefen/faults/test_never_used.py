"""Never-used elements: embedding rows not seen, inputs always zero, moved by weight decay alone."""

import pytest
import torch
from torch import Tensor

from .ours import advance, every_option, noise, ours, parameter
from .published import Published, normalised, quantiser

SHAPE = (64, 64)
STEPS = 60
UNUSED_ROWS, UNUSED_COLUMNS = [5, 9, 40], [0, 33]


def gradients(*, rows: bool, columns: bool) -> Tensor:
    bank = noise(STEPS, *SHAPE)
    if rows:
        bank[:, UNUSED_ROWS] = 0
    if columns:
        bank[:, :, UNUSED_COLUMNS] = 0
    return bank


def published_movement(bank: Tensor, block: int, factored: bool) -> Tensor:
    param = parameter(*SHAPE)
    levels = quantiser(normalised(bank[0], block))
    optimizer = Published(param, levels, block, factored=factored)
    for gradient in bank:
        advance(optimizer, param, gradient)
    return param.detach().abs()


def test_published_row_form_moves_dead_inputs() -> None:
    bank = gradients(rows=False, columns=True)
    moved = published_movement(bank, block=64, factored=False)
    assert (moved[:, UNUSED_COLUMNS] > 1e-6).all()


def test_published_factored_form_steps_by_one_over_eps() -> None:
    """Dead inputs, and unseen rows whose scale is shared with a row that is seen."""
    bank = gradients(rows=True, columns=True)
    moved = published_movement(bank, block=128, factored=True)
    assert moved[:, UNUSED_COLUMNS].max() > 1
    assert moved[UNUSED_ROWS].max() > 1


@every_option
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_ours_applies_weight_decay_alone(second_moment: str, bits: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(SHAPE, generator=generator).to(dtype)
    param = torch.nn.Parameter(start.clone())
    optimizer = ours([param], second_moment, bits, lr=0.05, weight_decay=0.2)
    expected = start.clone()
    for gradient in gradients(rows=True, columns=True).to(dtype):
        advance(optimizer, param, gradient)
        expected.mul_(1 - 0.05 * 0.2)
    assert torch.equal(param[UNUSED_ROWS], expected[UNUSED_ROWS])
    assert torch.equal(param[:, UNUSED_COLUMNS], expected[:, UNUSED_COLUMNS])
    used = param != expected
    assert used[1:5, 1:33].float().mean() > 0.9  # and the others do move


@pytest.mark.parametrize("second_moment", ["factored", "block"])
@pytest.mark.parametrize("bits", [8, 4])
def test_an_idle_expert_does_not_move_and_later_steps_as_adamw(
    second_moment: str, bits: int
) -> None:
    """A stacked expert without gradient for 30 steps, then with: RMS update as AdamW's."""
    shape, idle = (4, 32, 64), 2
    bank = noise(60, *shape)
    bank[:30, idle] = 0
    mine, reference = parameter(*shape), parameter(*shape)
    optimizer = ours([mine], second_moment, bits)
    adamw = torch.optim.AdamW([reference], weight_decay=0.0)
    for step, gradient in enumerate(bank):
        advance(optimizer, mine, gradient)
        advance(adamw, reference, gradient)
        if step < 30:
            assert not mine[idle].any()
    ratio = mine[idle].square().mean() / reference[idle].square().mean()
    assert 0.9 < ratio.sqrt() < 1.15
