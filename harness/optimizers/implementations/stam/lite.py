"""`STAMLite`: STAM with one number for the second moment of a tensor."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from harness.optimizers.implementations.stam.base import AdaptiveMomentum, adapted_beta1
from harness.optimizers.implementations.stam.bucket import Bucket, write_back


class STAMLite(AdaptiveMomentum):
    """STAM with one second moment for each tensor instead of one for each element.

    In step t = 1, 2, ... of a tensor, with betas (b, d), a = adapt_strength, means over all of its
    elements, and NaN and infinities of the gradient g replaced by 0::

        M      <- d M + (1 - d) mean(g)
        Q      <- d Q + (1 - d) mean(g^2)
        M^, Q^  = M / (1 - d^t), Q / (1 - d^t)
        z       = max(Q^ - M^^2, 0) / (Q^ + eps)
        beta1   = b (1 - a z / (1 + z)), at least max(0.5, b (1 - a)), at most b,
                  b where z is not finite; in the first step and then in every
                  beta1_update_interval-th, as it was in all others
        m      <- beta1 m + (1 - beta1) g
        B      <- B beta1                                 (B starts at 1, all else at 0)
        theta  <- theta - lr (m / (1 - B + eps)) / (sqrt(Q^) + eps)
                  - lr weight_decay theta                 (theta before this step)

    z is at most 1, so that beta1 is at least b (1 - a / 2). Where gradients are much smaller than
    sqrt(eps), z is near 0 and beta1 near b. With b of 0.5 or less nothing adapts.

    State of a parameter: `exp_avg` (m) in its shape and dtype, and 0-d, of the working dtype and
    on its device: `step` (t), `grad_mean` (M), `grad_sq` (Q), `beta1`, `bias_correction1` (1 - B).
    The working dtype is as for `STAM`. A step needs memory for one tensor of the largest
    parameter's size in the working dtype (three where that is not the parameter's dtype), and reads
    nothing back from the device.

    Args:
        params: as for `STAM`.
        lr: learning rate, a float or a one-element tensor.
        betas: largest momentum b; decay d of both means (the source's moment_decay).
        eps: added to the denominators of z and of the step, and to 1 - B.
        weight_decay: decoupled weight decay.
        adapt_strength: largest share of b that noise takes away, 0 (none) to 0.5.
        beta1_update_interval: steps for which a beta1 is used.
        maximize: ascend instead of descend.

    Raises and source: as for `STAM`.
    """

    _moments: ClassVar[tuple[str, ...]] = ("exp_avg",)
    _scalars: ClassVar[Mapping[str, float]] = dict.fromkeys(
        ("step", "grad_mean", "grad_sq", "beta1", "bias_correction1"), 0.0
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        adapt_strength: float = 0.2,
        beta1_update_interval: int = 5,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "adapt_strength": adapt_strength,
            "beta1_update_interval": beta1_update_interval,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_options(self, options: Mapping[str, Any]) -> None:
        super()._check_options(options)
        interval = options["beta1_update_interval"]
        if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
            raise ValueError(
                f"beta1_update_interval must be an integer of at least 1, not {interval!r}"
            )

    def _update(self, bucket: Bucket) -> None:
        group = bucket.group
        eps = group["eps"]
        beta1, square = self._adapt(bucket, *_gradient_means(bucket))
        weight1 = bucket.scalars("bias_correction1").mul_(beta1).add_(1 - beta1)
        bucket.keep(beta1=beta1, bias_correction1=weight1)
        size = -bucket.rate / ((weight1 + eps) * (square.sqrt() + eps))
        for index in range(len(bucket.params)):
            _descend(bucket, index, 1 - beta1[index], size[index])

    def _adapt(self, bucket: Bucket, mean: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        """Momentum of this step and the corrected mean square Q^, both (n,).

        `mean` and `square` (n,) are those of this step's gradients; the averages are brought up to
        date.
        """
        group = bucket.group
        base, decay = group["betas"]
        first = bucket.scalars("grad_mean").mul_(decay).add_(mean, alpha=1 - decay)
        second = bucket.scalars("grad_sq").mul_(decay).add_(square, alpha=1 - decay)
        step = bucket.scalars("step").add_(1)
        bucket.keep(step=step, grad_mean=first, grad_sq=second)
        weight = -torch.expm1(step * (math.log(decay) if decay else -math.inf))
        second = second / weight
        ratio = (second - (first / weight).square()).clamp_min(0) / (second + group["eps"])
        adapted = adapted_beta1(base, group["adapt_strength"], ratio, ratio.isfinite())
        due = (step - 1).remainder(group["beta1_update_interval"]) == 0
        return torch.where(due, adapted, bucket.scalars("beta1")), second


def _descend(bucket: Bucket, index: int, weight1: Tensor, size: Tensor) -> None:
    """The moment and the step of one parameter; 0-d: 1 - beta1, minus the rate over the scale."""
    group, param, state = bucket.group, bucket.params[index], bucket.states[index]
    first = bucket.working(state["exp_avg"])
    first.lerp_(bucket.gradient(index), weight1)
    write_back(state["exp_avg"], first)
    descended = bucket.working(param)
    if group["weight_decay"]:
        descended.mul_(1 - bucket.rate * group["weight_decay"])
    write_back(param, descended.addcmul_(first, size))


def _gradient_means(bucket: Bucket) -> tuple[Tensor, Tensor]:
    """Mean and mean square (n,) of the gradients."""
    return bucket.means([_gradient_sums(bucket, index) for index in range(len(bucket.params))])


def _gradient_sums(bucket: Bucket, index: int) -> tuple[Tensor, Tensor]:
    """Sums of g and g^2 of one parameter, 0-d; its copy ends with it."""
    gradient = bucket.gradient(index)
    total = gradient.sum()
    return total, gradient.mul_(gradient).sum()
