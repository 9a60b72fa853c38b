"""Gefen: this project's implementation (see the package `gefen` for method and citation)."""

from collections.abc import Sequence
from typing import Any

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers.closed_forms import (
    ADAM_FLOPS,
    AVERAGE_FLOPS,
    DESCENT_FLOPS,
    decay_flops,
    elements,
)
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import construct
from harness.optimizers.options import Option, choice, flag, integer

# Forms of the second moment whose shape is decided by the first gradients.
GRADIENT_DRIVEN = frozenset({"paper", "peak"})
# The constructor's own options that change the size of the state, and those that do not. Defaults
# are the constructor's.
_SIZES: dict[str, Option] = {
    "first_moment_bits": choice(8, 4, 32),
    "second_moment": choice("factored", "block", *sorted(GRADIENT_DRIVEN)),
    "group_size": integer(1, null=True),
    "block_size": integer(1),
    "min_quantized_size": integer(1),
}
OPTIONS: dict[str, Option] = {**_SIZES, "skip_nonfinite": flag(), "fused": flag(null=True)}
_CODES_FLOPS = 1 + 2 + 1 + 3  # times the scale; its maximum; quotient; cell and comparison
_ROUNDING_FLOPS = 3  # distance to the level below, over that to the next, against a random number
_RELATIVE_FLOPS = 2  # times the old column factor, times the inverse of the new one
_CAPPED_FLOPS = 1 + 2 + 2 + 2  # quotient, two bounds, NaN guard, step
_FACTORED_FLOPS = 3 + 2  # square and its two sums; row times column plus eps
_BLOCK_FLOPS = 2  # square and its sum


def prepare() -> float:
    """Build the kernels of the CPU, which need no device to be present; in seconds."""
    from gefen import build_cpu_kernels

    return build_cpu_kernels()


def state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int | None:
    """The library's own closed form; the parameter's dtype does not matter.

    None for the forms `paper` and `peak` of the second moment: gradients decide their shape.
    Beside its state the optimizer holds lookup tables derived from the codebook: a constant 80 KiB
    for each device, which no checkpoint contains and this does not count.
    """
    import gefen

    if config.options.get("second_moment") in GRADIENT_DRIVEN:
        return None
    sizes = {key: config.options[key] for key in _SIZES if key in config.options}
    return int(gefen.state_bytes([spec.shape for spec in specs], **sizes))


def flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int | None:
    """Operations for each element, counted from the rule in `gefen.updates.reference`.

    Factored with 8 or 4 bits: 5 for the second moment, 3 for the average, 12 for codes (3 less
    with `rounding=nearest`, 2 less with `relative=false`), 7 for the capped step. Blocks: 2, 3,
    10 and AdamW's 3. Without codes (32 bits) those are left out; small tensors are AdamW's 13. And
    the decay. What is done once a row, column or block is left out: under 5 % for rows of 64 and
    more. None for `paper` and `peak`: gradients decide their blocks.
    """
    from gefen.blocks import BLOCK_SIZE, MIN_QUANTIZED_SIZE
    from gefen.layout import shape_layout

    options = config.options
    if options.get("second_moment") in GRADIENT_DRIVEN:
        return None
    defaults = (8, "factored", None, BLOCK_SIZE, MIN_QUANTIZED_SIZE)
    group = {k: options.get(k, v) for k, v in zip(_SIZES, defaults, strict=True)}
    total = decay_flops(config, specs)
    for spec in specs:
        layout = shape_layout(spec.shape, group)
        assert layout is not None
        each = ADAM_FLOPS
        if layout.geometry is not None:
            each = _grouped_flops(layout.factored, layout.quantized, options)
        total += each * elements([spec])
    return total


def shards(config: OptimizerConfig) -> bool:
    """Whole rows of a DTensor suffice, but for `paper` and `peak`: they search whole tensors."""
    return config.options.get("second_moment") not in GRADIENT_DRIVEN


def _grouped_flops(factored: bool, quantized: bool, options: dict[str, Any]) -> int:
    """For one element of a tensor with groups; the switches are those of `gefen_ablation`."""
    capped = factored and options.get("cap", 1.0) is not None
    each = AVERAGE_FLOPS + (_FACTORED_FLOPS if factored else _BLOCK_FLOPS)
    each += _CAPPED_FLOPS if capped else DESCENT_FLOPS
    if quantized:
        each += _CODES_FLOPS
        each += _ROUNDING_FLOPS if options.get("rounding", "stochastic") == "stochastic" else 0
        each += _RELATIVE_FLOPS if factored and options.get("relative", True) else 0
    return each


ENTRY = OptimizerEntry(
    name="gefen",
    source="gefen.Gefen",
    summary="AdamW with a quantised first moment and a shared second moment.",
    build=construct,
    options=OPTIONS,
    state_bytes=state_bytes,
    flops=flops,
    prepare=prepare,
    shards=shards,
)
