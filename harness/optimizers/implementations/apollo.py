"""APOLLO as a torch optimizer: gradients scaled by factors that a low-rank AdamW estimates.

Zhu et al., "APOLLO: SGD-like Memory, AdamW-level Performance", arXiv 2412.05270, algorithm 1.
For a hidden matrix with gradient G (m, n), m <= n (else transposed), random P (r, m) of variance
1/r, renewed every `update_proj_gap` steps, and R = P G (r, n):

    M, V   <- moments of R           R~ = (M / (1 - b1^t)) / (sqrt(V / (1 - b2^t)) + eps)
    S       = |R~| / |R| of each column (`channel`), or of the whole matrix (`tensor`)
    U       = G S                    |U| may grow by 1 % a step at most
    W      <- W - lr sqrt(scale) U - lr wd W

Every other parameter takes AdamW. The low-rank moments give sizes only, the direction is the whole
gradient: pytorch_optimizer.APOLLO 4.1.0 instead projects the scaled low-rank gradient back, so
that its update has rank r (1 for APOLLO-Mini), and applies `scale` a second time.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_GROWTH = 1.01
_TINY = 1e-8


class APOLLO(Optimizer):
    """Groups with a key `rank` hold matrices (m, n) and are projected; the others take AdamW.

    State in the parameter's dtype: `projection` (r, min(m, n)), `exp_avg` and `exp_avg_sq` of R,
    `update_norm` (0-d), for the others two moments; `step` is a Python number. Projections depend
    on the place of the parameter and on the step alone, not on torch's random state. Ranges are
    checked by whoever builds it (`harness.optimizers.apollo`).
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
        scale_type: str = "channel",
        scale: float = 1.0,
        update_proj_gap: int = 200,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self._scale_type, self._scale, self._gap = scale_type, scale, update_proj_gap

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure`, if given, is evaluated first and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        place = 0
        for group in self.param_groups:
            for param in group["params"]:
                place += 1
                if param.grad is None:
                    continue
                state = self.state[param]
                state["step"] = state.get("step", 0) + 1
                if "rank" in group:
                    update = self._scaled(param.grad, group, state, place)
                else:
                    update = _direction(param.grad, group, state)
                if group["weight_decay"]:
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(update, alpha=-group["lr"])
        return loss

    def _scaled(self, grad: Tensor, group: dict[str, Any], state: Any, place: int) -> Tensor:
        """sqrt(scale) U of the docstring for a matrix (m, n), in its shape."""
        wide = grad if grad.shape[0] <= grad.shape[1] else grad.T
        if "projection" not in state or state["step"] % self._gap == 0:
            state["projection"] = _projection(group["rank"], wide, place, state["step"])
        low = state["projection"] @ wide
        dims = 0 if self._scale_type == "channel" else (0, 1)
        before = torch.linalg.vector_norm(low, dim=dims)
        after = torch.linalg.vector_norm(_direction(low, group, state), dim=dims)
        update = wide * (after / (before + _TINY))
        norm = torch.linalg.vector_norm(update)
        if "update_norm" in state:
            growth = norm / (state["update_norm"] + _TINY)
            limit = (growth / _GROWTH).clamp_(min=1.0)
            norm = norm / limit
            update.div_(limit)
        state["update_norm"] = norm
        update.mul_(math.sqrt(self._scale))
        return update if wide is grad else update.T


def _direction(grad: Tensor, group: dict[str, Any], state: Any) -> Tensor:
    """AdamW's direction for `grad`, whose moments are updated in `state`."""
    if "exp_avg" not in state:
        state["exp_avg"] = torch.zeros_like(grad)
        state["exp_avg_sq"] = torch.zeros_like(grad)
    first, second = group["betas"]
    state["exp_avg"].lerp_(grad, 1 - first)
    state["exp_avg_sq"].mul_(second).addcmul_(grad, grad, value=1 - second)
    root = state["exp_avg_sq"].sqrt().div_(math.sqrt(1 - second ** state["step"]))
    root.add_(group["eps"])
    return (state["exp_avg"] / root).div_(1 - first ** state["step"])


def _projection(rank: int, wide: Tensor, place: int, step: int) -> Tensor:
    """A Gaussian (min(rank, m), m) of variance 1 / rank for a gradient (m, n)."""
    generator = torch.Generator().manual_seed(place * 1_000_003 + step)
    rows = min(rank, wide.shape[0])
    drawn = torch.randn(rows, wide.shape[0], generator=generator) / math.sqrt(rows)
    return drawn.to(device=wide.device, dtype=wide.dtype)
