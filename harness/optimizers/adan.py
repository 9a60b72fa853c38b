"""Adan: Adam with a momentum of gradient differences (pytorch_optimizer).

Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models",
arXiv 2208.06677. Its weight decay is the proximal one of algorithm 1, p / (1 + lr wd).
`step` leaves the gradients negated.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import (
    AVERAGE_FLOPS,
    DESCENT_FLOPS,
    ROOT_FLOPS,
    any_settings,
    decay_flops,
    decay_groups,
    elements,
)

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

# The difference; times beta plus gradient; the average of its square; the next old gradient.
_DIFFERENCE_FLOPS = 1 + 2 + 4 + 1


def _build(model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    from pytorch_optimizer import Adan

    optimizer: Optimizer = Adan(
        decay_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.betas[0], config.betas[1], config.betas[2]),
        eps=config.eps,
        foreach=config.options.get("foreach", False),
    )
    return optimizer


def _state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int:
    """Three moments and the last gradient in the parameter's dtype; steps are Python numbers."""
    return 4 * parameter_bytes * elements(specs)


def _flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """23 for each element and the decay: algorithm 1 of the source."""
    each = 2 * AVERAGE_FLOPS + _DIFFERENCE_FLOPS + ROOT_FLOPS + 2 * DESCENT_FLOPS
    return each * elements(specs) + decay_flops(config, specs)


ENTRY = OptimizerEntry(
    name="adan",
    source="pytorch_optimizer.Adan",
    summary="Adam with Nesterov momentum from gradient differences; four tensors an element.",
    needs="pytorch_optimizer",
    imports=("pytorch_optimizer",),
    options=frozenset({"foreach"}),
    build=_build,
    state_bytes=_state_bytes,
    flops=_flops,
    betas=3,
    shards=any_settings,
)
