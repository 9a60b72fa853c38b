"""Adan: Adam with a momentum of gradient differences (pytorch_optimizer).

Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models",
arXiv 2208.06677. Its weight decay is the proximal one of algorithm 1, p / (1 + lr wd).
`step` leaves the gradients negated.
"""

from harness.optimizers.closed_forms import (
    AVERAGE_FLOPS,
    DESCENT_FLOPS,
    ROOT_FLOPS,
    flops_per_element,
    moments,
)
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import construct
from harness.optimizers.options import flag

# The difference; times beta plus gradient; the average of its square; the next old gradient.
_DIFFERENCE_FLOPS = 1 + 2 + 4 + 1

ENTRY = OptimizerEntry(
    name="adan",
    source="pytorch_optimizer.Adan",
    summary="Adam with Nesterov momentum from gradient differences; four tensors an element.",
    needs="pytorch_optimizer",
    build=construct,
    options={"foreach": flag(False, null=True)},
    betas=3,
    state_bytes=moments(4),  # three, and the last gradient; step counts are Python numbers
    # Algorithm 1 of the source: 23.
    flops=flops_per_element(2 * AVERAGE_FLOPS + _DIFFERENCE_FLOPS + ROOT_FLOPS + 2 * DESCENT_FLOPS),
    shards=True,
)
