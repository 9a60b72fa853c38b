"""Stress tests on one parameter; their results do not depend on the machine.

They take `make`, which builds an optimizer of learning rate LR and no weight decay for a
parameter. The parameter is set to zero before every step, so that after it it holds the update
alone, in full precision.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

LR = 1e-3
STOP_AFTER = 50
COLUMN_SCALES = (1.0, 0.1, 0.01)
_BANK = 256
_SETTLED, _SETTLED_STEPS = 1e-9, 20


class Stepper(Protocol):
    """What an experiment needs of an optimizer: it reads `param.grad`."""

    def step(self) -> object:
        """Update the parameter."""


Make = Callable[[nn.Parameter], Stepper]


def updates(make: Make, gradients: Iterable[Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the update of every step, in units of LR."""
    param: nn.Parameter | None = None
    for gradient in gradients:
        if param is None:
            param = nn.Parameter(torch.zeros(gradient.shape, dtype=dtype))
            optimizer = make(param)
        param.data.zero_()
        param.grad = gradient.to(dtype)
        optimizer.step()
        yield param.data.float() / LR


def noise(steps: int, shape: tuple[int, ...], scale: Tensor | float = 1.0) -> Iterator[Tensor]:
    """Yield float32 standard normal gradients times `scale`: 256 of them, over and over."""
    bank = torch.randn(_BANK, *shape, generator=torch.Generator().manual_seed(0)) * scale
    for step in range(steps):
        yield bank[step % _BANK]


def movement_after_stop(make: Make, steps: int, shape: tuple[int, int] = (64, 128)) -> float:
    """Return how far an element still moves after its gradient became zero, in units of LR.

    Gradients are noise for 50 steps; then every 16th column gets none for `steps` steps. The path
    length (sum of absolute updates), averaged over the elements of these columns.

    Ends early when 20 updates in a row have stayed below 1e-9 everywhere in these columns: codes
    are then all zero and remain it, and a float32 moment decays further.
    """
    stopped = slice(3, None, 16)

    def gradients() -> Iterator[Tensor]:
        for step, gradient in enumerate(noise(STOP_AFTER + steps, shape)):
            if step >= STOP_AFTER:
                gradient = gradient.clone()
                gradient[:, stopped] = 0
            yield gradient

    path, quiet = torch.zeros(shape)[:, stopped].double(), 0
    for step, update in enumerate(updates(make, gradients(), torch.float32)):
        if step >= STOP_AFTER:
            moved = update[:, stopped].abs()
            path += moved
            quiet = quiet + 1 if moved.max() < _SETTLED else 0
            if quiet == _SETTLED_STEPS:
                break
    return path.mean().item()


def update_rms(make: Make, steps: int = 120, shape: tuple[int, int] = (32, 192)) -> list[float]:
    """Return the RMS update (units of LR) of columns whose gradients are at 1, .1 and .01.

    The scales alternate from column to column; the second half of the steps counts.
    """
    width = len(COLUMN_SCALES)
    scale = torch.tensor(COLUMN_SCALES).repeat(shape[1] // width)
    total = torch.zeros(width, dtype=torch.float64)
    for step, update in enumerate(updates(make, noise(steps, shape, scale), torch.float32)):
        if step >= steps // 2:
            total += update.double().square().view(-1, width).mean(0)
    return (total / (steps - steps // 2)).sqrt().tolist()


def second_moment_drift(
    make: Make,
    state: Callable[[Stepper, nn.Parameter], Mapping[str, Tensor]],
    beta2: float,
    steps: int,
    *,
    smaller_after: int | None = None,
    shape: tuple[int, int] = (64, 64),
) -> float:
    """Return the largest relative error of a stored second moment of a bfloat16 parameter.

    `state` returns the tensors to judge by name: `row_mean`, `column_mean`, or another name for
    means over equally many consecutive elements. The oracle is the same average in float64 of the
    same bfloat16 gradients, which become ten times smaller after `smaller_after` steps.
    """
    param = nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16))
    optimizer = make(param)
    exact: dict[str, Tensor] = {}
    for step, gradient in enumerate(noise(steps, shape)):
        small = smaller_after is not None and step >= smaller_after
        param.grad = (gradient / 10 if small else gradient).bfloat16()
        optimizer.step()
        square = param.grad.double().square()
        for name, stored in state(optimizer, param).items():
            mean = _mean(square, name, stored)
            exact[name] = beta2 * exact.get(name, torch.zeros_like(mean)) + (1 - beta2) * mean
    return max(
        ((stored.double() - exact[name]).abs() / exact[name]).max().item()
        for name, stored in state(optimizer, param).items()
    )


def _mean(square: Tensor, name: str, stored: Tensor) -> Tensor:
    """What one step adds to a stored second moment, float64, of its shape."""
    if name == "row_mean":
        return square.mean(1)
    if name == "column_mean":
        return square.mean(0)
    return square.reshape(stored.numel(), -1).mean(-1).view(stored.shape)
