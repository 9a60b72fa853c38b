"""Ablations: factored Gefen with parts of its update rule switched off, on the stress tests.

The switches are those of `harness.research.optimizers.gefen_ablation`: stochastic rounding, a
first moment divided by its column factor, and the bound of an element's step in units of the
learning rate.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from harness.research.optimizers.gefen_ablation import ablated
from harness.research.robustness.scenarios import LR, Make, movement_after_stop, updates

STOP_STEPS = 1_000
STOP_BETAS = ((0.9, 0.95), (0.9, 0.999))
BITS = (8, 4)
WITHOUT_REMEDIES: dict[str, Any] = {"rounding": "nearest", "relative": False, "cap": None}
BOUNDS: dict[str, float | None] = {"1 lr": 1.0, "2 lr": 2.0, "none": None}
SEEDS = (0, 1, 2, 3, 4)
BLOCK_SCALES = (1.0, 1e-2, 1e-4)
BLOCK_STEPS = 10
TASK_WEIGHT, TASK_STEPS, TASK_LR, TASK_BATCH = 0.01, 150, 3e-3, 32
_BETAS = (0.9, 0.999)
_HALF = 64

Say = Callable[[str], None]


class Stop(TypedDict):
    """Movement after a stopped gradient without any of the remedies, relative to AdamW's."""

    first_moment_bits: int
    betas: tuple[float, float]
    steps: int
    movement_ratio: float


class SmallBlock(TypedDict):
    """Largest update (units of the learning rate) in a block of small gradients, by seed."""

    optimizer: str
    bound: str | None
    scale: float
    steps: int
    largest_updates: list[float]


class TwoTasks(TypedDict):
    """Expected squared error of two tasks in one matrix at the end, by seed; 1 at the start."""

    optimizer: str
    bound: str | None
    weight: float
    steps: int
    lr: float
    heavy_losses: list[float]
    light_losses: list[float]


def stops(say: Say) -> list[Stop]:
    """Movement after a stopped gradient with nearest rounding of the undivided m and no bound."""
    figures = []
    for betas in STOP_BETAS:
        exact = movement_after_stop(_adamw(LR, betas), STOP_STEPS)
        for bits in BITS:
            say(f"without remedies: betas {betas}, {bits} bits")
            moved = movement_after_stop(_gefen(LR, betas, bits, **WITHOUT_REMEDIES), STOP_STEPS)
            figures.append(
                Stop(
                    first_moment_bits=bits,
                    betas=betas,
                    steps=STOP_STEPS,
                    movement_ratio=moved / exact,
                )
            )
    return figures


def small_blocks(say: Say) -> list[SmallBlock]:
    """The largest update of a small block by scale and bound."""
    figures = []
    for scale in BLOCK_SCALES:
        for optimizer, bound, make in _contestants(LR):
            say(f"small block: at {scale:g}, {optimizer}, bound {bound}")
            figures.append(
                SmallBlock(
                    optimizer=optimizer,
                    bound=bound,
                    scale=scale,
                    steps=BLOCK_STEPS,
                    largest_updates=[
                        largest_update(make, scale, seed, BLOCK_STEPS) for seed in SEEDS
                    ],
                )
            )
    return figures


def two_tasks(say: Say) -> list[TwoTasks]:
    """The final losses of two tasks of unequal weight by bound."""
    figures = []
    for optimizer, bound, make in _contestants(TASK_LR):
        say(f"two tasks: {optimizer}, bound {bound}")
        losses = [task_losses(make, TASK_WEIGHT, seed, TASK_STEPS) for seed in SEEDS]
        figures.append(
            TwoTasks(
                optimizer=optimizer,
                bound=bound,
                weight=TASK_WEIGHT,
                steps=TASK_STEPS,
                lr=TASK_LR,
                heavy_losses=[heavy for heavy, _ in losses],
                light_losses=[light for _, light in losses],
            )
        )
    return figures


def largest_update(make: Make, scale: float, seed: int, steps: int) -> float:
    """Return the largest update, in units of LR, where small rows meet small columns.

    A (64, 64) gradient is standard normal in its upper left quarter, `scale` times that in its
    lower right one and zero elsewhere; the lower right quarter counts, over all steps. There the
    product of the factors is about scale^4 where the square is scale^2.
    """
    generator = torch.Generator().manual_seed(seed)
    small = slice(_HALF // 2, None)

    def gradients() -> Iterator[Tensor]:
        for _ in range(steps):
            gradient = torch.randn(_HALF, _HALF, generator=generator)
            gradient[: small.start, small] = gradient[small, : small.start] = 0
            gradient[small, small] *= scale
            yield gradient

    moved = updates(make, gradients(), torch.float32)
    return max(update[small, small].abs().max().item() for update in moved)


def task_losses(make: Make, weight: float, seed: int, steps: int) -> tuple[float, float]:
    """Return the final losses (weight 1, `weight`) of two linear regressions in one matrix.

    A (128, 128) matrix starts at zero; each task has a quarter of it on the diagonal, (64, 64),
    its own 32 standard normal inputs a step, and a random matrix as target. A loss is the mean
    squared error over outputs, at the end its expectation over inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(2, _HALF, _HALF, generator=generator) / _HALF**0.5
    param = nn.Parameter(torch.zeros(2 * _HALF, 2 * _HALF))
    heavy, light = param[:_HALF, :_HALF], param[_HALF:, _HALF:]
    optimizer = make(param)
    for _ in range(steps):
        inputs = torch.randn(2, TASK_BATCH, _HALF, generator=generator)
        gradient = torch.zeros_like(param)
        for part, task, factor in ((heavy, 0, 1.0), (light, 1, weight)):
            error = inputs[task] @ (part.detach() - targets[task]).T
            slope = error.T @ inputs[task] * (2 * factor / error.numel())
            place = slice(task * _HALF, (task + 1) * _HALF)
            gradient[place, place] = slope
        param.grad = gradient
        optimizer.step()
    ends = [part.detach() - target for part, target in zip((heavy, light), targets, strict=True)]
    first, second = ((end.square().sum() / _HALF).item() for end in ends)
    return first, second


def _contestants(lr: float) -> Iterator[tuple[str, str | None, Make]]:
    """AdamW, then Gefen with 8 bits under each of BOUNDS: (name, bound, make)."""
    yield "AdamW", None, _adamw(lr, _BETAS)
    for bound, cap in BOUNDS.items():
        yield "Gefen", bound, _gefen(lr, _BETAS, 8, cap=cap)


def _adamw(lr: float, betas: tuple[float, float]) -> Make:
    return lambda param: torch.optim.AdamW([param], lr=lr, betas=betas, weight_decay=0)


def _gefen(lr: float, betas: tuple[float, float], bits: int, **switches: Any) -> Make:
    kind = ablated(**switches)
    options: dict[str, Any] = {"second_moment": "factored", "first_moment_bits": bits}
    return lambda param: kind([param], lr=lr, betas=betas, weight_decay=0, **options)
