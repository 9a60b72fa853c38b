"""Closed forms that several optimizers share: bytes of state, floating-point operations of a step.

One operation is a sum, product, quotient, root, sign, absolute value, maximum or comparison of real
numbers; a fused a x + b counts two, as in the FLOPs of matrix products. Reading tables, moving,
drawing random bits and converting count nothing.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.config import OptimizerConfig
from harness.models import ParameterSpec

if TYPE_CHECKING:
    from harness.optimizers.entry import Flops, StateBytes

STEP_BYTES = 4  # torch's step count of a tensor, float32

# For each element.
AVERAGE_FLOPS = 3  # m <- m + (1 - beta) (g - m)
SQUARE_AVERAGE_FLOPS = 4  # v <- beta v + (1 - beta) g g
ROOT_FLOPS = 3  # sqrt(v) / correction + eps
DESCENT_FLOPS = 3  # p <- p - size m / root
ADAM_FLOPS = AVERAGE_FLOPS + SQUARE_AVERAGE_FLOPS + ROOT_FLOPS + DESCENT_FLOPS


def moments(count: int, tensor_bytes: int = 0) -> "StateBytes":
    """`count` tensors of the parameter's shape and dtype, and `tensor_bytes` for each parameter."""

    def state_bytes(
        config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
    ) -> int:
        return count * parameter_bytes * elements(specs) + tensor_bytes * len(specs)

    return state_bytes


def unknown_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> None:
    """Not known in advance: the first gradients decide which elements share a second moment."""
    return None


def flops_per_element(count: int) -> "Flops":
    """`count` operations for each element, and the decay."""

    def flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
        return count * elements(specs) + decay_flops(config, specs)

    return flops


def decay_flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """Decoupled weight decay: one product for each element of a matrix, none where it is 0."""
    matrices = [spec for spec in specs if len(spec.shape) >= 2]
    return elements(matrices) if config.weight_decay else 0


def elements(specs: Sequence[ParameterSpec]) -> int:
    """Number of elements of all parameters."""
    return sum(math.prod(spec.shape) for spec in specs)


def largest(specs: Sequence[ParameterSpec]) -> int:
    """Number of elements of the largest parameter; 0 where there is none."""
    return max((math.prod(spec.shape) for spec in specs), default=0)
