"""A transcription of the published update, with its faults: what every test here contrasts with.

Written from the description in arXiv 2606.13894 (2026) and of the package 1.2.3: nearest
rounding, no code for 0, state in the gradient's dtype, the step taken with the quantised moment.
`factored` is the variant of a fork. Nothing here is fast or complete.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

BINS = 4096


def normalised(gradient: Tensor, block: int) -> Tensor:
    """The gradient over the largest magnitude of its block, flat; 0 in a block of zeros."""
    blocks = gradient.double().reshape(-1, block)
    largest = blocks.abs().amax(-1, keepdim=True)
    return torch.where(largest == 0, 0.0, blocks / largest).reshape(-1)


def quantiser(values: Tensor, count: int = 256) -> Tensor:
    """The `count` levels of least squared error on the histogram of values in [-1, 1], ends fixed.

    Lloyd's iteration from quantiles, where the package solves the same problem exactly; 0 becomes
    a level by accident only. NaN where the histogram is of NaN.
    """
    if not values.isfinite().all():
        return torch.full((count,), torch.nan)
    weight = np.histogram(values.numpy(), bins=BINS, range=(-1, 1))[0].astype(np.float64)
    centre = (np.arange(BINS) + 0.5) * 2 / BINS - 1
    cumulative = np.cumsum(weight)
    start = np.searchsorted(cumulative, np.linspace(0, cumulative[-1], count))
    levels = centre[np.minimum(start, BINS - 1)]
    levels[0], levels[-1] = -1, 1
    for _ in range(100):
        cell = np.searchsorted((levels[1:] + levels[:-1]) / 2, centre)
        mass = np.bincount(cell, weight, minlength=count)
        moment = np.bincount(cell, weight * centre, minlength=count)
        levels = np.where(mass > 0, moment / np.maximum(mass, 1), levels)
        levels[0], levels[-1] = -1, 1
    return torch.from_numpy(np.sort(levels)).float()


class Published:
    """One parameter under the published update.

    `block` elements share a second moment and `group` (default: the block) a scale, in row-major
    order; `factored` takes the second moment from row and column means instead. State lies in
    `dtype`, the gradient's.
    """

    def __init__(
        self,
        param: Tensor,
        levels: Tensor,
        block: int,
        *,
        group: int | None = None,
        factored: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
        lr: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.param, self.levels, self.betas, self.lr = param, levels.float(), betas, lr
        self.eps, self.weight_decay, self.factored, self.steps = eps, weight_decay, factored, 0
        self.block, self.group = block, group or block
        dtype = param.dtype
        self.index = torch.zeros(param.numel() // self.group, self.group, dtype=torch.uint8)
        self.scale = torch.zeros(len(self.index), 1, dtype=dtype)
        self.second_moment = torch.zeros(param.numel() // block, 1, dtype=dtype)
        if factored:
            self.row = torch.zeros(len(param), 1, dtype=dtype)
            self.column = torch.zeros(1, param.shape[1], dtype=dtype)

    @property
    def moment(self) -> Tensor:
        """The first moment as stored."""
        return (self.levels[self.index.long()] * self.scale.float()).view(self.param.shape)

    @torch.no_grad()
    def step(self) -> None:
        """Advance by the parameter's gradient."""
        gradient = self.param.grad
        assert gradient is not None
        self.steps += 1
        beta1, beta2 = self.betas
        variance = self._advance_second_moment(gradient)
        working = beta1 * self.moment + (1 - beta1) * gradient.float()
        groups = working.view(self.index.shape)
        self.scale = groups.abs().amax(-1, keepdim=True).to(self.scale.dtype)
        ratio = torch.where(self.scale == 0, -1.0, groups / self.scale.float())
        middle = (self.levels[1:] + self.levels[:-1]) / 2
        self.index = torch.bucketize(ratio, middle).to(torch.uint8)
        denominator = variance.sqrt() / (1 - beta2**self.steps) ** 0.5 + self.eps
        self.param.mul_(1 - self.lr * self.weight_decay)
        update = self.lr * self.moment / (1 - beta1**self.steps) / denominator
        self.param.sub_(update.to(self.param.dtype))

    def _advance_second_moment(self, gradient: Tensor) -> Tensor:
        """Advance the second moment in its own dtype; return it for each element, in float32."""
        beta2 = self.betas[1]
        square = gradient.float().square()
        if not self.factored:
            mean = square.view(-1, self.block).mean(-1, keepdim=True)
            _average(self.second_moment, mean, beta2)
            spread = self.second_moment.expand(-1, self.block)
            return spread.reshape(self.param.shape).float()
        _average(self.row, square.mean(1, keepdim=True), beta2)
        _average(self.column, square.mean(0, keepdim=True), beta2)
        return self.row.float() * self.column.float() / self.row.float().mean()


def _average(stored: Tensor, new: Tensor, beta: float) -> None:
    stored.mul_(beta).add_(new.to(stored.dtype), alpha=1 - beta)


class PublishedInterface(torch.optim.Optimizer):
    """The published constructor: one group a tensor, `beta1` and `beta2`, frozen ones dropped.

    State is loaded by torch's base class, which casts it to the parameter's dtype.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3) -> None:
        groups = [{"params": [param]} for param in params if param.requires_grad]
        super().__init__(groups, {"lr": lr, "beta1": 0.9, "beta2": 0.999})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Create the state of a first step; the update itself is `Published`."""
        for group in self.param_groups:
            for param in group["params"]:
                largest = param.grad.abs().amax(-1, keepdim=True)
                self.state[param] = {
                    "index": (param.grad / largest * 127 + 128).to(torch.uint8),
                    "second_moment": param.grad.float().square().mean(-1),
                }
