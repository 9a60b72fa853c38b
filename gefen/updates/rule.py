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
    second moment before it is quantised. `cap`: bound of an element's step in units of the
    learning rate, None for no bound; AdamW's own steps hardly exceed 1. The last two concern the
    factored form alone, whose product of factors can be far below the square of an element.
    """

    stochastic: bool = True
    relative: bool = True
    cap: float | None = 1.0


@dataclass(frozen=True)
class Step:
    """The numbers of one step of one parameter.

    `decay` multiplies the parameter (decoupled weight decay, None for none); `size` is the
    learning rate over `first_correction`, the first moment's bias correction; `correction` the
    square root of the second moment's. `key` is what the random bits of the step are drawn from.
    With `capturable=True` these are one-element tensors on the parameter's device.
    """

    decay: Number | None
    size: Number
    first_correction: Number
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
        first_correction: Number
        correction: Number
        key: int | Tensor
        if group["capturable"]:
            lr, *betas = (_like(value, number.device, dtype) for value in (lr, *betas))
            first_correction = 1 - betas[0] ** number
            size = lr / first_correction
            correction = (1 - betas[1] ** number).sqrt()
            bits = number.to(torch.int32).reshape(1).add(signed(parameter_key(ordinal)))
            key = mix(bits, torch.empty_like(bits))
        else:
            lr, betas, count = float(lr), (float(betas[0]), float(betas[1])), int(number)
            first_correction = 1 - betas[0] ** count
            size = lr / first_correction
            correction = math.sqrt(1 - betas[1] ** count)
            key = mix_integer(count + parameter_key(ordinal))
        return cls(
            decay=1 - lr * decay if decay else None,
            size=size,
            first_correction=first_correction,
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
