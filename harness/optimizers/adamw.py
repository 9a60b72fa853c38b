"""AdamW of PyTorch: the reference every other optimizer is compared with.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101.
"""

from collections.abc import Sequence

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers.closed_forms import ADAM_FLOPS, STEP_BYTES, decay_flops, elements
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import construct
from harness.optimizers.options import flag


def _state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int:
    """Two moments in the parameter's dtype (a third with amsgrad), one float32 step a tensor."""
    moments = 3 if config.options.get("amsgrad") else 2
    return moments * parameter_bytes * elements(specs) + STEP_BYTES * len(specs)


def _flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """13 for each element and the decay, from algorithm 2 of the source as torch computes it.

    amsgrad takes one maximum more. Fused and foreach forms compute the same.
    """
    each = ADAM_FLOPS + bool(config.options.get("amsgrad"))
    return each * elements(specs) + decay_flops(config, specs)


def _step_transient_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int, device: str
) -> int | None:
    """The fused form updates in place; what the others allocate depends on foreach and device."""
    return 0 if config.options.get("fused") else None


ENTRY = OptimizerEntry(
    name="adamw",
    source="torch.optim.AdamW",
    summary="Adam with decoupled weight decay; two moments for every element.",
    build=construct,
    options={"fused": flag(null=True), "foreach": flag(null=True), "amsgrad": flag()},
    state_bytes=_state_bytes,
    flops=_flops,
    step_transient_bytes=_step_transient_bytes,
    shards=True,
)
