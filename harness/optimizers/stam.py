"""STAM and STAMLite: this project's PyTorch form (in `implementations.stam`).

TokenAI, "Stable Training with Adaptive Momentum" (2026), published for JAX only.
"""

from collections.abc import Sequence

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers.closed_forms import (
    ADAM_FLOPS,
    AVERAGE_FLOPS,
    flops_per_element,
    largest,
    moments,
)
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import construct
from harness.optimizers.options import integer, number

_SCALAR_BYTES = 5 * 4  # of a tensor, float32: step, two averages, beta1, its bias correction
_RESIDUAL_FLOPS = 1 + 2 + 2  # g - m; its square and magnitude, each with its sum
_MEANS_FLOPS = 1 + 2  # sum; square and its sum
_UPDATE_FLOPS = 2  # p <- p - size m
_STRENGTH = number(least=0, most=0.5)


def _stam_transient(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int, device: str
) -> int:
    """Float32 copies of the largest tensor: of its gradient; with bfloat16 of all four."""
    return (4 if parameter_bytes == 4 else 16) * largest(specs)


def _lite_transient(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int, device: str
) -> int:
    """Float32 copies of the largest tensor: of its gradient; with bfloat16 two, and the moment."""
    return (4 if parameter_bytes == 4 else 12) * largest(specs)


# Operations are those with finite gradients: 18 and 8 for each element.
ENTRIES = (
    OptimizerEntry(
        name="stam",
        source="harness.optimizers.implementations.stam.STAM",
        summary="AdamW whose momentum falls, tensor by tensor, where gradients scatter around it.",
        build=construct,
        options={
            "adapt_strength": _STRENGTH,
            "tau_decay": number(least=0, below=1),
            "fallback_threshold": number(above=0),
        },
        state_bytes=moments(2, _SCALAR_BYTES),
        flops=flops_per_element(ADAM_FLOPS + _RESIDUAL_FLOPS),
        step_transient_bytes=_stam_transient,
    ),
    OptimizerEntry(
        name="stam_lite",
        source="harness.optimizers.implementations.stam.STAMLite",
        summary="STAM with one second moment for each tensor; one moment for every element.",
        build=construct,
        options={"adapt_strength": _STRENGTH, "beta1_update_interval": integer(1)},
        state_bytes=moments(1, _SCALAR_BYTES),
        flops=flops_per_element(_MEANS_FLOPS + AVERAGE_FLOPS + _UPDATE_FLOPS),
        step_transient_bytes=_lite_transient,
    ),
)
