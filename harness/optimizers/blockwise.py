"""What the 8-bit optimizers of bitsandbytes share: codes in blocks of 256, and their sizes.

Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers.closed_forms import decay_flops, elements
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import construct
from harness.optimizers.options import flag, integer

if TYPE_CHECKING:
    from bitsandbytes.optim.optimizer import Optimizer8bit
    from torch import nn
    from torch.optim import Optimizer

_BLOCK = 256
_MIN_8BIT_SIZE = 4096
_CODE_TABLE_BYTES = 256 * 4
# A moment: times its scale; absolute value and maximum, quotient, 8 comparisons for 256 codes.
_CODEC_FLOPS = 1 + 2 + 1 + 8


def entry(
    *,
    name: str,
    source: str,
    summary: str,
    tables: Mapping[str, str],
    flops: int,
    construct: "Callable[[Any, nn.Module, OptimizerConfig], Optimizer]" = construct,
) -> OptimizerEntry:
    """An entry for a class of bitsandbytes with a code table for each of its moments.

    `tables` maps the key of a table in a tensor's state to its name in `name2qmap`; `flops` are
    those of the same optimizer in float32, for each element.
    """

    def build(kind: Any, model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
        return construct(with_shared_tables(kind, tables), model, config)

    def state_bytes(
        config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
    ) -> int:
        return len(tables) * _moment_bytes(config, specs)

    def count(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
        """Those in float32, and 12 for each element of a quantised moment (source, section 2).

        Counted from the method: a binary search, whatever an implementation does instead.
        """
        codec = len(tables) * _CODEC_FLOPS * elements(_quantised(config, specs))
        return flops * elements(specs) + codec + decay_flops(config, specs)

    return OptimizerEntry(
        name=name,
        source=source,
        summary=summary,
        needs="bitsandbytes",
        options={"min_8bit_size": integer(0, _MIN_8BIT_SIZE), "is_paged": flag()},
        build=build,
        state_bytes=state_bytes,
        flops=count,
    )


def with_shared_tables(kind: "type[Optimizer8bit]", tables: Mapping[str, str]) -> Any:
    """`kind` whose code tables stay one storage each when a checkpoint is loaded."""

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


def _quantised(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> list[ParameterSpec]:
    smallest = config.options["min_8bit_size"]
    return [spec for spec in specs if math.prod(spec.shape) >= smallest]


def _moment_bytes(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """A moment: a byte an element and a float32 scale a block; small tensors stay in float32.

    The code table of a moment is one storage for all quantised tensors, and step counts are Python
    numbers. The parameter's dtype does not matter.
    """
    quantised = _quantised(config, specs)
    codes = elements(quantised)
    blocks = sum(math.ceil(math.prod(spec.shape) / _BLOCK) for spec in quantised)
    table = _CODE_TABLE_BYTES if quantised else 0
    return 4 * (elements(specs) - codes) + codes + 4 * blocks + table
