"""AdamW with moments of 8 bits, 4 bits or FP8 (torchao).

8 bits: Dettmers et al., arXiv 2110.02861. 4 bits: Li, Chen and Zhu, "Memory Efficient Optimizers
with 4-bit States", arXiv 2309.01507. FP8: Fishman et al., arXiv 2409.12517, in E4M3 with a scale a
block.

The update is compiled for each shape of a parameter, in the first step: that one takes seconds to
minutes. Option `compile: false` computes the same uncompiled, with many temporaries.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers.closed_forms import ADAM_FLOPS, STEP_BYTES, decay_flops, elements
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import construct
from harness.optimizers.options import flag, integer

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_MIN_QUANTISED_SIZE = 4096
_SCALE_FLOPS = 1 + 2 + 1  # times its scale; absolute value and maximum, quotient


@dataclass(frozen=True)
class _Format:
    """A class of torchao.optim and how it stores a moment."""

    kind: str
    bits: int
    block: int
    table: int  # entries of the code table, float32
    comparisons: int  # of a binary search for a code


_FORMATS = {
    "adamw8bit_ao": _Format("AdamW8bit", 8, 256, 256, 8),
    "adamw4bit_ao": _Format("AdamW4bit", 4, 128, 16, 4),
    "adamwfp8_ao": _Format("AdamWFp8", 8, 256, 0, 0),
}


def _with_plain_rates(kind: "type[Optimizer]", compiled: bool) -> Any:
    """`kind` whose groups show their learning rate as a number, which may be replaced."""
    import torch

    class PlainRates(kind):  # type: ignore[misc, valid-type]
        """torchao wants a tensor that is written into, so that a new rate compiles nothing."""

        def __init__(self, *args: Any, **keywords: Any) -> None:
            super().__init__(*args, **keywords)
            for group in self.param_groups:
                group["lr"] = float(keywords["lr"])

        def step(self, closure: Any = None) -> Any:
            rates = [group["lr"] for group in self.param_groups]
            for group in self.param_groups:
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32)
            try:
                with torch.compiler.set_stance("default" if compiled else "force_eager"):
                    return super().step(closure)
            finally:
                for group, rate in zip(self.param_groups, rates, strict=True):
                    group["lr"] = rate

    return PlainRates


def _build(kind: Any, model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    plain = _with_plain_rates(kind, config.options["compile"])
    own = {key: value for key, value in config.options.items() if key != "compile"}
    return construct(plain, model, config, own)


def _is_quantised(spec: ParameterSpec, config: OptimizerConfig) -> bool:
    n = math.prod(spec.shape)
    return n >= _MIN_QUANTISED_SIZE and n % config.options["block_size"] == 0


def _state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int:
    """Two moments and a float32 step a tensor.

    A moment has its codes, a float32 scale a block and a code table of its own. Tensors under 4096
    elements, and those that blocks do not divide, stay in the parameter's dtype.
    """
    form, block = _FORMATS[config.name], config.options["block_size"]
    total = STEP_BYTES * len(specs)
    for spec in specs:
        n = math.prod(spec.shape)
        codes = n * form.bits // 8 + 4 * (n // block) + 4 * form.table
        total += 2 * (codes if _is_quantised(spec, config) else parameter_bytes * n)
    return total


def _flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """AdamW's, and for quantised moments scaling and a binary search among their codes."""
    each = 2 * (_SCALE_FLOPS + _FORMATS[config.name].comparisons)
    quantised = [spec for spec in specs if _is_quantised(spec, config)]
    return ADAM_FLOPS * elements(specs) + each * elements(quantised) + decay_flops(config, specs)


def _entry(name: str, summary: str) -> OptimizerEntry:
    return OptimizerEntry(
        name=name,
        source=f"torchao.optim.{_FORMATS[name].kind}",
        summary=summary,
        needs="torchao",
        options={
            "block_size": integer(1, _FORMATS[name].block),
            "bf16_stochastic_round": flag(),
            "compile": flag(True),
        },
        build=_build,
        state_bytes=_state_bytes,
        flops=_flops,
    )


ENTRIES = (
    _entry("adamw8bit_ao", "AdamW with block-wise 8-bit moments, compiled for each shape."),
    _entry("adamw4bit_ao", "AdamW with block-wise 4-bit moments, compiled for each shape."),
    _entry("adamwfp8_ao", "AdamW with block-wise FP8 moments, compiled for each shape."),
)
