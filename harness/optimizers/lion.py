"""Lion: the sign of an interpolated momentum, one moment (pytorch_optimizer; 8-bit: bitsandbytes).

Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675.
"""

from harness.optimizers import blockwise
from harness.optimizers.closed_forms import AVERAGE_FLOPS, flops_per_element, moments
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import construct_without_eps
from harness.optimizers.options import flag

_FLOPS = 2 * AVERAGE_FLOPS + 1 + 2  # two averages, a sign, p - lr u: algorithm 2 of the source

ENTRIES = (
    OptimizerEntry(
        name="lion",
        source="pytorch_optimizer.Lion",
        summary="Sign of an interpolated momentum with decoupled weight decay; one moment.",
        needs="pytorch_optimizer",
        options={"foreach": flag(null=True)},
        build=construct_without_eps,
        state_bytes=moments(1),  # the step count is a Python number of the group
        flops=flops_per_element(_FLOPS),
        shards=True,
    ),
    blockwise.entry(
        name="lion8bit",
        source="bitsandbytes.optim.Lion8bit",
        summary="Lion with a block-wise 8-bit moment; tensors under 4096 elements stay in float32.",
        construct=construct_without_eps,
        tables={"qmap1": "dynamic"},
        flops=_FLOPS,
    ),
)
