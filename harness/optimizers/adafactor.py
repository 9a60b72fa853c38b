"""Adafactor: a second moment of rows and columns, no first moment (torch): the memory floor.

Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
arXiv 1804.04235. The step is relative to the size of each tensor, at least `eps` (the second of
the source), so that the learning rate is not AdamW's.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers.closed_forms import STEP_BYTES, decay_flops
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import construct
from harness.optimizers.options import flag, number

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

# Norms of the weights, the update, and of a matrix's rows and columns; inverse root (2) of the
# clamped moment; times the gradient; p - size u.
_COMMON_FLOPS = 2 + 2 + 1 + 2 + 1 + 2
_MATRIX_FLOPS = 2 + 2 + 1 + 1  # row times column, over the mean of the rows
_VECTOR_FLOPS = 1 + 3


def _build(kind: Any, model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    options = {**config.options, "eps": (None, config.eps)}
    return construct(kind, model, config, options, takes=("lr",))


def _state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int:
    """For each matrix its rows and columns, for a vector all elements, in the parameter's dtype.

    And one float32 step a tensor.
    """
    total = 0
    for spec in specs:
        n = math.prod(spec.shape)
        total += n if len(spec.shape) < 2 else n // spec.shape[-1] + n // spec.shape[-2]
    return parameter_bytes * total + STEP_BYTES * len(specs)


def _flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """16 for each element of a matrix, 14 for one of a vector, and the decay (algorithm 4)."""
    total = decay_flops(config, specs)
    for spec in specs:
        own = _VECTOR_FLOPS if len(spec.shape) < 2 else _MATRIX_FLOPS
        total += (_COMMON_FLOPS + own) * math.prod(spec.shape)
    return total


ENTRY = OptimizerEntry(
    name="adafactor",
    source="torch.optim.Adafactor",
    summary="Second moment of rows and columns alone, no first moment: the memory floor.",
    options={
        "beta2_decay": number(most=0),
        "d": number(least=1),
        "foreach": flag(False, null=True),
    },
    betas=0,
    build=_build,
    state_bytes=_state_bytes,
    flops=_flops,
)
