"""STAM and STAMLite, optimizers that lower momentum where gradients are noisy; needs torch alone.

`python -m harness.research.beta1 --help` shows how far their momentum adapts at a gradient scale.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from harness.optimizers.implementations.adaptive_momentum import (
    AdaptiveMomentum,
    Bucket,
    adapted_beta1,
    write_back,
)

TAU_EPS = 1e-8  # added to the square of tau, whatever eps is


class STAM(AdaptiveMomentum):
    """Stable Training with Adaptive Momentum: AdamW with one adaptive beta1 for each tensor.

    In step t = 1, 2, ... of a tensor, with betas (b, beta2), a = adapt_strength, means over all of
    its elements, and NaN and infinities of the gradient g replaced by 0::

        r       = g - m                                   (m before this step)
        sigma2 <- beta2 sigma2 + (1 - beta2) mean(r^2)
        tau    <- tau_decay tau + (1 - tau_decay) mean(|r|)
        z       = sigma2 / (tau^2 + 1e-8)
        beta1   = b (1 - a z / (1 + z)), at least max(0.5, b (1 - a)), at most b;
                  b where z is at least fallback_threshold or sigma2 is not finite
        m      <- beta1 m + (1 - beta1) g
        v      <- beta2 v + (1 - beta2) g^2
        B      <- B beta1                                 (B starts at 1, all else at 0)
        theta  <- theta - lr (m / (1 - B + eps)) / (sqrt(v / (1 - beta2^t + eps)) + eps)
                  - lr weight_decay theta                 (theta before this step)

    The 1e-8 beside tau^2 has the scale of a squared gradient: where gradients are much smaller
    than 1e-4, z is near 0, beta1 near b, and STAM is AdamW. With b of 0.5 or less nothing adapts.

    State of a parameter: `exp_avg` (m) and `exp_avg_sq` (v) in its shape and dtype, and 0-d, of
    the working dtype and on its device: `step` (t), `residual_sq` (sigma2), `residual_abs` (tau),
    `beta1` (that of the last step), `bias_correction1` (1 - B). The working dtype is float64 for
    float64 parameters, float32 for all others, whose state is rounded to nearest when stored: in
    bfloat16 a v with beta2 of 0.999 hardly falls, as with `torch.optim.AdamW`. A step needs memory
    for one tensor of the largest parameter's size in the working dtype (four where that is not the
    parameter's dtype), and reads nothing back from the device.

    Args:
        params: parameters, named parameters or groups, as for `torch.optim.AdamW`; float16,
            bfloat16, float32 or float64, not DTensors.
        lr: learning rate, a float or a one-element tensor.
        betas: largest momentum b; decay of the second moment and of sigma2.
        eps: added to the denominator and to both bias corrections.
        weight_decay: decoupled weight decay.
        adapt_strength: largest share of b that noise takes away, 0 (none) to 0.5.
        tau_decay: decay of tau.
        fallback_threshold: least z that is taken for an outlier, in which beta1 is b.
        maximize: ascend instead of descend.

    Raises:
        ValueError: an option out of range, a parameter of another kind, or a loaded state that
            does not fit; always before anything changes.
        RuntimeError: a sparse gradient.

    Source: TokenAI, "Stable Training with Adaptive Momentum" (2026), published for JAX; this is
    written from its formulas. `amsgrad` and the execution switches of AdamW do not exist here.
    """

    _moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    _scalars: ClassVar[Mapping[str, float]] = dict.fromkeys(
        ("step", "residual_sq", "residual_abs", "beta1", "bias_correction1"), 0.0
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        adapt_strength: float = 0.2,
        tau_decay: float = 0.99,
        fallback_threshold: float = 100.0,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "adapt_strength": adapt_strength,
            "tau_decay": tau_decay,
            "fallback_threshold": fallback_threshold,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_options(self, options: Mapping[str, Any]) -> None:
        super()._check_options(options)
        if not 0.0 <= options["tau_decay"] < 1.0:
            raise ValueError(f"tau_decay must be in [0, 1), not {options['tau_decay']!r}")
        if not options["fallback_threshold"] > 0.0:
            threshold = options["fallback_threshold"]
            raise ValueError(f"fallback_threshold must be above 0, not {threshold!r}")

    def _update(self, bucket: Bucket) -> None:
        group = bucket.group
        beta2 = group["betas"][1]
        beta1 = self._adapt(bucket)
        # As 1 - B and with expm1: a difference of nearly equal numbers would lose digits.
        weight1 = bucket.scalars("bias_correction1").mul_(beta1).add_(1 - beta1)
        step = bucket.scalars("step").add_(1)
        weight2 = -torch.expm1(step * (math.log(beta2) if beta2 else -math.inf))
        bucket.keep(step=step, beta1=beta1, bias_correction1=weight1)
        size = bucket.rate / (weight1 + group["eps"])
        for index in range(len(bucket.params)):
            scalars = (1 - beta1[index], weight2[index] + group["eps"], size[index])
            self._descend(bucket, index, *scalars)

    def _adapt(self, bucket: Bucket) -> Tensor:
        """Momentum (n,) of this step; the averages it depends on are brought up to date."""
        group = bucket.group
        base, beta2 = group["betas"]
        sums = [_residual_sums(bucket, index) for index in range(len(bucket.params))]
        magnitudes, squares = bucket.means(sums)
        variance = bucket.scalars("residual_sq").mul_(beta2).add_(squares, alpha=1 - beta2)
        tau = bucket.scalars("residual_abs").mul_(group["tau_decay"])
        tau.add_(magnitudes, alpha=1 - group["tau_decay"])
        bucket.keep(residual_sq=variance, residual_abs=tau)
        scale = tau.square() + TAU_EPS
        trusted = variance < group["fallback_threshold"] * scale  # false for NaN and infinity
        return adapted_beta1(base, group["adapt_strength"], variance / scale, trusted)

    def _descend(
        self, bucket: Bucket, index: int, weight1: Tensor, weight2: Tensor, size: Tensor
    ) -> None:
        """Both moments and the step of one parameter; 0-d: 1 - beta1, 1 - beta2^t + eps, rate."""
        group, param, state = bucket.group, bucket.params[index], bucket.states[index]
        beta2 = group["betas"][1]
        gradient = bucket.gradient(index)
        first, second = bucket.working(state["exp_avg"]), bucket.working(state["exp_avg_sq"])
        first.lerp_(gradient, weight1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        write_back(state["exp_avg"], first)
        write_back(state["exp_avg_sq"], second)
        update = torch.div(second, weight2, out=gradient).sqrt_().add_(group["eps"])
        torch.div(first, update, out=update).mul_(size)
        descended = bucket.working(param)
        if group["weight_decay"]:
            descended.mul_(1 - bucket.rate * group["weight_decay"])
        descended.sub_(update)
        write_back(param, descended)


def _residual_sums(bucket: Bucket, index: int) -> tuple[Tensor, Tensor]:
    """Sums of |g - m| and (g - m)^2 of one parameter, 0-d; its copy ends with it."""
    residual = bucket.gradient(index).sub_(bucket.states[index]["exp_avg"])
    # Not norms: on a CPU those add floats one by one, 2 % off for 20 million elements.
    magnitude = residual.abs_().sum()
    return magnitude, residual.mul_(residual).sum()


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
            _descend_lite(bucket, index, 1 - beta1[index], size[index])

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


def _descend_lite(bucket: Bucket, index: int, weight1: Tensor, size: Tensor) -> None:
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
