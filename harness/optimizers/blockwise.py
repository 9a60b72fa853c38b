"""What the 8-bit optimizers of bitsandbytes share: codes in blocks of 256, and their sizes.

Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers.groups import elements

if TYPE_CHECKING:
    from bitsandbytes.optim.optimizer import Optimizer8bit

OPTIONS = frozenset({"min_8bit_size", "is_paged"})
_BLOCK = 256
_MIN_8BIT_SIZE = 4096
_CODE_TABLE_BYTES = 256 * 4
# A moment: times its scale; absolute value and maximum, quotient, 8 comparisons for 256 codes.
_CODEC_FLOPS = 1 + 2 + 1 + 8


def with_shared_tables(kind: "type[Optimizer8bit]", tables: Mapping[str, str]) -> Any:
    """`kind` whose code tables stay one storage each when a checkpoint is loaded.

    `tables` maps the key of a table in a tensor's state to its name in `name2qmap`.
    """

    class SharedTables(kind):  # type: ignore[misc, valid-type]
        """Loading leaves each tensor with code tables of its own; share them again."""

        def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
            super().load_state_dict(state_dict, move_to_device)
            for state in self.state.values():
                for key, table in tables.items():
                    if key in state:
                        device = state["state1"].device
                        self.name2qmap[table] = self.name2qmap[table].to(device)
                        state[key] = self.name2qmap[table]

    return SharedTables


def state_bytes(config: OptimizerConfig, specs: Sequence[ParameterSpec], moments: int) -> int:
    """A moment: a byte an element and a float32 scale a block; small tensors stay in float32.

    The code tables, one for each moment, are one storage each for all quantised tensors, and the
    step counts are Python numbers. The parameter's dtype does not matter.
    """
    smallest = int(config.options.get("min_8bit_size", _MIN_8BIT_SIZE))
    sizes = [math.prod(spec.shape) for spec in specs]
    quantised = [n for n in sizes if n >= smallest]
    exact = 4 * sum(n for n in sizes if n < smallest)
    blocks = sum(math.ceil(n / _BLOCK) for n in quantised)
    table = _CODE_TABLE_BYTES if quantised else 0
    return moments * (exact + sum(quantised) + 4 * blocks + table)


def codec_flops(config: OptimizerConfig, specs: Sequence[ParameterSpec], moments: int) -> int:
    """12 for each element of a quantised moment, to decode and encode it (source, section 2).

    Counted from the method: a binary search, whatever an implementation does instead.
    """
    smallest = int(config.options.get("min_8bit_size", _MIN_8BIT_SIZE))
    quantised = [spec for spec in specs if math.prod(spec.shape) >= smallest]
    return moments * _CODEC_FLOPS * elements(quantised)
