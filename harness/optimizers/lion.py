"""Lion: the sign of an interpolated momentum, one moment (pytorch_optimizer; 8-bit: bitsandbytes).

Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers import blockwise
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import (
    AVERAGE_FLOPS,
    any_settings,
    decay_flops,
    decay_groups,
    elements,
)

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_TABLES = {"qmap1": "dynamic"}


def _build(model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    from pytorch_optimizer import Lion

    # Lion has no eps: config.eps is not used.
    optimizer: Optimizer = Lion(
        decay_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        **config.options,
    )
    return optimizer


def _build_8bit(model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    from bitsandbytes.optim import Lion8bit

    optimizer: Optimizer = blockwise.with_shared_tables(Lion8bit, _TABLES)(
        decay_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        **config.options,
    )
    return optimizer


def _state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int:
    """One moment in the parameter's dtype; the step count is a Python number of the group."""
    return parameter_bytes * elements(specs)


def _state_bytes_8bit(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int:
    """One moment in codes (see `blockwise`)."""
    return blockwise.state_bytes(config, specs, 1)


def _flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """Two running averages, a sign, p - lr u (2), and the decay: algorithm 2 of the source."""
    return (2 * AVERAGE_FLOPS + 1 + 2) * elements(specs) + decay_flops(config, specs)


def _flops_8bit(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """Lion's, and for quantised tensors the codec of the moment."""
    return _flops(config, specs) + blockwise.codec_flops(config, specs, 1)


ENTRIES = (
    OptimizerEntry(
        name="lion",
        source="pytorch_optimizer.Lion",
        summary="Sign of an interpolated momentum with decoupled weight decay; one moment.",
        needs="pytorch_optimizer",
        imports=("pytorch_optimizer",),
        options=frozenset({"foreach"}),
        build=_build,
        state_bytes=_state_bytes,
        flops=_flops,
        shards=any_settings,
    ),
    OptimizerEntry(
        name="lion8bit",
        source="bitsandbytes.optim.Lion8bit",
        summary="Lion with a block-wise 8-bit moment; tensors under 4096 elements stay in float32.",
        needs="bitsandbytes",
        imports=("bitsandbytes",),
        options=blockwise.OPTIONS,
        build=_build_8bit,
        state_bytes=_state_bytes_8bit,
        flops=_flops_8bit,
    ),
)
