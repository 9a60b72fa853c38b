"""LAMB: Adam whose step in each tensor has the length of its weights (pytorch_optimizer).

You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
arXiv 1904.00962, version 3: without bias correction. Meant for large batches.
"""

from collections.abc import Sequence

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers.closed_forms import (
    AVERAGE_FLOPS,
    SQUARE_AVERAGE_FLOPS,
    elements,
    flops_per_element,
)
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import construct
from harness.optimizers.options import flag

_UPDATE_FLOPS = 3 + 2 * 2 + 2  # m / (sqrt(v) + eps); norms of weights and update; p - size u


def _state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int:
    """Two moments and three numbers a tensor (two norms, their ratio), in the parameter's dtype.

    Holds once no tensor is all zero: before, its ratio is a Python number, as the step counts are.
    """
    return parameter_bytes * (2 * elements(specs) + 3 * len(specs))


ENTRY = OptimizerEntry(
    name="lamb",
    source="pytorch_optimizer.Lamb",
    summary="Adam with a trust ratio of weights to update in each tensor; for large batches.",
    needs="pytorch_optimizer",
    build=construct,
    options={"foreach": flag(False, null=True)},
    state_bytes=_state_bytes,
    # Algorithm 2 of the source, version 3: 16.
    flops=flops_per_element(AVERAGE_FLOPS + SQUARE_AVERAGE_FLOPS + _UPDATE_FLOPS),
)
