"""The numbers of one step of one parameter, and the variant of the rule."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gefen.rounding import mix, mix_integer, parameter_key, signed

Number = float | Tensor


@dataclass(frozen=True)
class Rule:
    """Variants of the update that the harness compares; the class Gefen has the defaults.

    `stochastic`: round the first moment to either neighbour with the probability that leaves its
    mean unchanged, else to the nearest. `relative`: divide it by the square root of its column's
    second moment before it is quantised (factored form only). `cap`: bound of an element's update
    in units of the learning rate, None for no bound.
    """

    stochastic: bool = True
    relative: bool = True
    cap: float | None = None


@dataclass(frozen=True)
class Step:
    """The numbers of one step of one parameter.

    `decay` multiplies the parameter (decoupled weight decay, None for none); `size` is the
    learning rate over the first moment's bias correction; `correction` the square root of the
    second moment's. `key` is what the random bits of the step are drawn from. With
    `capturable=True` these are one-element tensors on the parameter's device.
    """

    lr: Number
    decay: Number | None
    size: Number
    correction: Number
    first_weight: Number
    second_weight: Number
    eps: float
    maximize: bool
    key: int | Tensor

    @classmethod
    def of(
        cls, group: Mapping[str, Any], number: Tensor, ordinal: int, dtype: torch.dtype
    ) -> "Step":
        """Return the numbers of step `number` (0-d, counted from 1) of parameter `ordinal`.

        `dtype` is that of the update's maths.
        """
        lr, betas, decay = group["lr"], group["betas"], group["weight_decay"]
        size: Number
        correction: Number
        key: int | Tensor
        if group["capturable"]:
            lr, *betas = (_like(value, number.device, dtype) for value in (lr, *betas))
            size = lr / (1 - betas[0] ** number)
            correction = (1 - betas[1] ** number).sqrt()
            bits = number.to(torch.int32).reshape(1).add(signed(parameter_key(ordinal)))
            key = mix(bits, torch.empty_like(bits))
        else:
            lr, betas, count = float(lr), (float(betas[0]), float(betas[1])), int(number)
            size = lr / (1 - betas[0] ** count)
            correction = math.sqrt(1 - betas[1] ** count)
            key = mix_integer(count + parameter_key(ordinal))
        return cls(
            lr=lr,
            decay=1 - lr * decay if decay else None,
            size=size,
            correction=correction,
            first_weight=1 - betas[0],
            second_weight=1 - betas[1],
            eps=float(group["eps"]),
            maximize=group["maximize"],
            key=key,
        )


def _like(value: Number, device: torch.device, dtype: torch.dtype) -> Number:
    """A tensor of one element, of any shape, as 0-d on that device; a float as it is."""
    return value.to(device, dtype).reshape(()) if isinstance(value, Tensor) else value


def working_dtype(param: Tensor) -> torch.dtype:
    """Return the dtype of the update's maths."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32
