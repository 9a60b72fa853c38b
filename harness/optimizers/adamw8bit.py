"""AdamW with both moments in 8 bits, quantised in blocks of 256 elements (bitsandbytes).

Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.models import ParameterSpec
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import ADAM_FLOPS, decay_flops, decay_groups, elements
from harness.schema import OptimizerConfig

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_BLOCK = 256
_MIN_8BIT_SIZE = 4096
_CODE_TABLE_BYTES = 256 * 4
# A moment: times its scale; absolute value and maximum, quotient, 8 comparisons for 256 codes.
_CODEC_FLOPS = 1 + 2 + 1 + 8


def _build(model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    from bitsandbytes.optim import AdamW8bit

    class SharedTables(AdamW8bit):
        """Loading leaves each tensor with code tables of its own; share them again."""

        def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
            super().load_state_dict(state_dict, move_to_device)
            for state in self.state.values():
                for key, table in (("qmap1", "dynamic"), ("qmap2", "udynamic")):
                    if key in state:
                        device = state["state1"].device
                        self.name2qmap[table] = self.name2qmap[table].to(device)
                        state[key] = self.name2qmap[table]

    optimizer: Optimizer = SharedTables(
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
    """Two bytes an element and two float32 scales a block; small tensors stay in float32.

    The two code tables (signed and unsigned) are one storage each for all quantised tensors, and
    the step counts are Python numbers. The parameter's dtype does not matter.
    """
    smallest = int(config.options.get("min_8bit_size", _MIN_8BIT_SIZE))
    sizes = [math.prod(spec.shape) for spec in specs]
    quantised = [n for n in sizes if n >= smallest]
    exact = 2 * 4 * sum(n for n in sizes if n < smallest)
    blocks = sum(math.ceil(n / _BLOCK) for n in quantised)
    tables = 2 * _CODE_TABLE_BYTES if quantised else 0
    return exact + 2 * sum(quantised) + 2 * 4 * blocks + tables


def _flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """AdamW's, and for quantised tensors 12 a moment to decode and encode it (source, section 2).

    Counted from the method: a binary search, whatever an implementation does instead.
    """
    smallest = int(config.options.get("min_8bit_size", _MIN_8BIT_SIZE))
    quantised = [spec for spec in specs if math.prod(spec.shape) >= smallest]
    codec = 2 * _CODEC_FLOPS * elements(quantised)
    return ADAM_FLOPS * elements(specs) + codec + decay_flops(config, specs)


ENTRY = OptimizerEntry(
    name="adamw8bit",
    source="bitsandbytes.optim.AdamW8bit",
    summary="AdamW with block-wise 8-bit moments; tensors under 4096 elements stay in float32.",
    needs="bitsandbytes",
    imports=("bitsandbytes",),
    options=frozenset({"min_8bit_size", "is_paged"}),
    build=_build,
    state_bytes=_state_bytes,
    flops=_flops,
)
