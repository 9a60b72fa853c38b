"""AdamW with both moments in 8 bits, quantised in blocks of 256 elements (bitsandbytes).

Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers import blockwise
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import ADAM_FLOPS, decay_flops, decay_groups, elements, largest

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_TABLES = {"qmap1": "dynamic", "qmap2": "udynamic"}


def _build(model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    from bitsandbytes.optim import AdamW8bit

    optimizer: Optimizer = blockwise.with_shared_tables(AdamW8bit, _TABLES)(
        decay_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        **config.options,
    )
    return optimizer


def _state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int:
    """Two moments in codes (see `blockwise`)."""
    return blockwise.state_bytes(config, specs, 2)


def _flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """AdamW's, and for quantised tensors the codec of both moments."""
    codec = blockwise.codec_flops(config, specs, 2)
    return ADAM_FLOPS * elements(specs) + codec + decay_flops(config, specs)


def _step_transient_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int, device: str
) -> int | None:
    """On a CPU seven float32 copies of the largest tensor, which bitsandbytes decodes whole.

    Measured, not derived: 5.7 to 7.0 copies in `results/memory`. Its CUDA kernels: unknown.
    """
    return 28 * largest(specs) if device == "cpu" else None


ENTRY = OptimizerEntry(
    name="adamw8bit",
    source="bitsandbytes.optim.AdamW8bit",
    summary="AdamW with block-wise 8-bit moments; tensors under 4096 elements stay in float32.",
    needs="bitsandbytes",
    imports=("bitsandbytes",),
    options=blockwise.OPTIONS,
    build=_build,
    state_bytes=_state_bytes,
    flops=_flops,
    step_transient_bytes=_step_transient_bytes,
)
