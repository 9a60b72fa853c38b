"""LAMB: Adam whose step in each tensor has the length of its weights (pytorch_optimizer).

You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
arXiv 1904.00962, version 3: without bias correction. Meant for large batches.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import (
    AVERAGE_FLOPS,
    SQUARE_AVERAGE_FLOPS,
    decay_flops,
    decay_groups,
    elements,
)

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_UPDATE_FLOPS = 3 + 2 * 2 + 2  # m / (sqrt(v) + eps); norms of weights and update; p - size u


def _build(model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    from pytorch_optimizer import Lamb

    optimizer: Optimizer = Lamb(
        decay_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        foreach=config.options.get("foreach", False),
    )
    return optimizer


def _state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int:
    """Two moments and three numbers a tensor (two norms, their ratio), in the parameter's dtype.

    Holds once no tensor is all zero: before, its ratio is a Python number, as the step counts are.
    """
    return parameter_bytes * (2 * elements(specs) + 3 * len(specs))


def _flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """16 for each element and the decay: algorithm 2 of the source, version 3."""
    each = AVERAGE_FLOPS + SQUARE_AVERAGE_FLOPS + _UPDATE_FLOPS
    return each * elements(specs) + decay_flops(config, specs)


ENTRY = OptimizerEntry(
    name="lamb",
    source="pytorch_optimizer.Lamb",
    summary="Adam with a trust ratio of weights to update in each tensor; for large batches.",
    needs="pytorch_optimizer",
    imports=("pytorch_optimizer",),
    options=frozenset({"foreach"}),
    build=_build,
    state_bytes=_state_bytes,
    flops=_flops,
)
