"""Gefen as its authors publish it: a transcription of package `gefen` 1.2.3, for comparison.

Source: N. Benedek, T. Koren, O. Fried, "Gefen: Optimized Stochastic Optimizer", arXiv 2606.13894
(2026), written from the description in words and compared, step by step, with the published wheel
(tests/harness/optimizers/test_gefen_paper.py). What `gefen.Gefen` mends is here as published:
blocks come from the first gradient (`peak`), second moments and scales have the gradient's dtype,
no code is zero, the nearest code is taken, tensors of one dimension are quantised too, and a block
of one element keeps a second moment for each.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from gefen.block_rules import block_length, group_length
from gefen.codebook import LEVELS, block_histogram

_Floats = NDArray[np.float64]


class GefenPaper(Optimizer):
    """One byte for the first moment of an element, and one second moment a block of p elements.

    State of a parameter of n elements in blocks of p (found from its first gradient): `index`
    (n/p, p) uint8, `scale` (n/s, 1) and `v` (n/p, 1) in the gradient's dtype, s = p for p > 1 and
    else the largest divisor of n up to 256; `codebook` (256,) float32, one storage for all.

    With codes c, at step t of a gradient g, each element of block b (section 3 and the package):

        v_b  <- beta2 v_b + (1 - beta2) mean of g^2 over the block
        w    <- w (1 - lr weight_decay)
        m    <- beta1 c[index] scale_b + (1 - beta1) g
        scale_b <- max |m| over the block;  index <- code nearest to m / scale_b
        w    <- w - lr c[index] scale_b / (1 - beta1^t) / (sqrt(v_b) / sqrt(1 - beta2^t) + eps)

    Options are checked by whoever builds it. A gradient that is not finite stays in the state.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self._codebook: Tensor | None = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; the base class would cast codes and scales to the parameters' dtype."""
        saved = [value for _, value in sorted(state_dict["state"].items())]
        super().load_state_dict(state_dict)
        params = [p for group in self.param_groups for p in group["params"]]
        held = [p for p in params if p in self.state]
        for param, values in zip(held, saved, strict=True):
            for name, value in values.items():
                if isinstance(value, Tensor):
                    self.state[param][name] = value.to(param.device, copy=True)
        self._codebook = self.state[held[0]]["codebook"] if held else None
        for param in held:
            self.state[param]["codebook"] = self._codebook

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one step; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        pairs = [
            (param, group) for group in self.param_groups for param in group["params"]
            if param.grad is not None
        ]  # fmt: skip
        fresh = [param for param, _ in pairs if not self.state[param]]
        for param in fresh:
            self._begin(param)
        if self._codebook is None and pairs:
            blocks = (self._blocks(param).float().unsqueeze(0) for param in fresh)
            histograms = [block_histogram(block, block.numel()).cpu() for block in blocks]
            levels = paper_levels(torch.stack(histograms).sum(0).double().numpy())
            self._codebook = torch.from_numpy(levels).to(pairs[0][0].device)
        for param in fresh:
            self.state[param]["codebook"] = self._codebook
        for param, group in pairs:
            self._update(param, group)
        return loss

    def _begin(self, param: Tensor) -> None:
        """Blocks from the first gradient, and a first moment and second moments of zero."""
        assert param.grad is not None
        count, dtype = param.numel(), param.grad.dtype
        block = block_length(param.grad, "peak")
        scales = count // group_length(count, block)
        state = self.state[param]
        state["step"] = 0
        state["block"] = block
        state["index"] = torch.zeros(count // block, block, dtype=torch.uint8, device=param.device)
        state["scale"] = torch.zeros(scales, 1, dtype=dtype, device=param.device)
        state["v"] = torch.zeros(count // block, 1, dtype=dtype, device=param.device)

    def _blocks(self, param: Tensor) -> Tensor:
        assert param.grad is not None
        return param.grad.reshape(-1, self.state[param]["block"])

    def _update(self, param: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[param], group["betas"]
        state["step"] += 1
        step, scale, v, rate = state["step"], state["scale"], state["v"], group["lr"]
        codebook = state["codebook"]
        codes = codebook.to(scale.dtype)  # as published: with bf16 gradients 256 codes of 8 bits
        grad = self._blocks(param).float()
        v.copy_(v.float().lerp_(grad.square().mean(-1, keepdim=True), 1 - beta2))
        param.mul_(1 - rate * group["weight_decay"])
        index = state["index"].view(len(scale), -1)
        moment = codes[index.long()].float().mul_(scale).mul_(beta1)
        moment.add_(grad.view(moment.shape), alpha=1 - beta1)
        scale.copy_(moment.abs().amax(-1, keepdim=True))
        index.copy_(nearest(moment / torch.where(scale > 0, scale, 1.0).float(), codebook))
        stored = codes[index.long()].mul_(scale).float().view(grad.shape)
        root = v.float().sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        update = stored.div_(root).view(param.shape)
        param.copy_(param.float().sub_(update, alpha=rate / (1 - beta1**step)))


def nearest(values: Tensor, codebook: Tensor) -> Tensor:
    """The index (uint8) of the code nearest to each value in [-1, 1]."""
    middles = (codebook[1:] + codebook[:-1]) / 2
    return torch.bucketize(values.float(), middles).to(torch.uint8)


def paper_levels(histogram: _Floats, count: int = LEVELS) -> NDArray[np.float32]:
    """The `count` levels, the first -1 and the last 1, of least squared error over equal bins.

    `histogram` holds the weights of equal bins on [-1, 1], taken at their centres. The cost of a
    cell is concave-Monge, so each layer of the dynamic programme is solved by divide and conquer.
    Where fewer bins than levels are occupied the rest repeat the last level.
    """
    occupied = histogram > 0
    weight = histogram[occupied]
    place = ((np.arange(histogram.size) + 0.5) * 2 / histogram.size - 1)[occupied]
    programme = _Programme(weight, place)
    levels = np.concatenate([[-1.0], programme.solve(count - 2), [1.0]])
    return np.pad(levels, (0, count - len(levels)), mode="edge").astype(np.float32)


class _Programme:
    """Least error of the first j bins with a cell of -1 and l free cells, layer by layer."""

    def __init__(self, weight: _Floats, place: _Floats) -> None:
        self.size = len(weight)
        self.weight, self.moment, self.square = (
            np.concatenate([[0.0], np.cumsum(weight * place**power)]) for power in range(3)
        )
        self.depths = []
        step = 1 << (self.size.bit_length() - 1)
        while step:
            node = np.arange(step, self.size + 1, 2 * step)
            right = np.where(node + step <= self.size, node + step, self.size + 1)
            self.depths.append((node, node - step, right))
            step //= 2

    def solve(self, free: int) -> _Floats:
        """The free levels, ascending; fewer where a cell stays empty."""
        error = self.square + 2 * self.moment + self.weight  # all of the first j bins at -1
        layers = []
        for _ in range(free):
            error, starts = self._layer(error)
            layers.append(starts)
        rest = self.square - 2 * self.moment + self.weight  # all of the first j bins at 1
        stop = int(np.argmin(error + rest[-1] - rest))
        levels = []
        for starts in reversed(layers):
            start = int(starts[stop])
            mass = self.weight[stop] - self.weight[start]
            if mass > 0:
                levels.append((self.moment[stop] - self.moment[start]) / mass)
            stop = start
        return np.array(levels[::-1])

    def _layer(self, error: _Floats) -> tuple[_Floats, NDArray[np.int64]]:
        """One more free cell: its best start for each of its ends."""
        best = error.copy()
        starts = np.zeros(self.size + 2, dtype=np.int64)
        starts[self.size + 1] = self.size
        for node, left, right in self.depths:
            low = starts[left]
            length = np.minimum(starts[right], node) - low + 1
            first = np.cumsum(length) - length
            start = np.arange(length.sum()) + np.repeat(low - first, length)
            total = error[start] + self._cell(start, np.repeat(node, length))
            least = np.minimum.reduceat(total, first)
            hits = np.flatnonzero(total == np.repeat(least, length))
            starts[node] = start[hits[np.searchsorted(hits, first)]]
            best[node] = least
        return best, starts

    def _cell(self, start: NDArray[np.int64], end: NDArray[np.int64]) -> _Floats:
        """Error of the bins from `start` to `end` at their mean."""
        mass = np.maximum(self.weight[end] - self.weight[start], np.finfo(np.float64).tiny)
        moment = self.moment[end] - self.moment[start]
        error: _Floats = self.square[end] - self.square[start] - moment**2 / mass
        return error
