"""Parameter groups and sizes that several optimizers share."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.models import ParameterSpec

if TYPE_CHECKING:
    from torch import nn

    from harness.config import OptimizerConfig

# Modules of GPT-2, Llama and their relatives that hold one row for each token, position or class.
_TABLES = frozenset(
    {"wte", "wpe", "embed_tokens", "embed_positions", "embed_in", "lm_head", "classifier"}
)


def is_hidden_matrix(name: str, shape: Sequence[int]) -> bool:
    """A 2-D weight that is neither an embedding nor the output head."""
    return len(shape) == 2 and not _TABLES.intersection(name.split("."))


def decay_groups(model: "nn.Module", weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: decay for matrices, none for biases and norms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return drop_empty(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    )


def drop_empty(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Only the groups that hold parameters."""
    return [group for group in groups if group["params"]]


def any_settings(config: "OptimizerConfig") -> bool:
    """True: what the entry says holds whatever the settings."""
    return True


def elements(specs: Sequence[ParameterSpec]) -> int:
    """Number of elements of all parameters."""
    return sum(math.prod(spec.shape) for spec in specs)


def largest(specs: Sequence[ParameterSpec]) -> int:
    """Number of elements of the largest parameter; 0 where there is none."""
    return max((math.prod(spec.shape) for spec in specs), default=0)


# The elementwise parts that update rules share, in operations for each element. One operation is a
# sum, product, quotient, root, sign, absolute value, maximum or comparison of real numbers; a fused
# a x + b counts two, as in the FLOPs of matrix products. Reading tables, moving, drawing random
# bits and converting count nothing.
AVERAGE_FLOPS = 3  # m <- m + (1 - beta) (g - m)
SQUARE_AVERAGE_FLOPS = 4  # v <- beta v + (1 - beta) g g
ROOT_FLOPS = 3  # sqrt(v) / correction + eps
DESCENT_FLOPS = 3  # p <- p - size m / root
ADAM_FLOPS = AVERAGE_FLOPS + SQUARE_AVERAGE_FLOPS + ROOT_FLOPS + DESCENT_FLOPS


def decay_flops(config: "OptimizerConfig", specs: Sequence[ParameterSpec]) -> int:
    """Decoupled weight decay: one product for each element of a matrix, none where it is 0."""
    matrices = [spec for spec in specs if len(spec.shape) >= 2]
    return elements(matrices) if config.weight_decay else 0
