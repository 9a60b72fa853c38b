"""STAM and STAMLite: this project's PyTorch form (in `implementations.stam`).

TokenAI, "Stable Training with Adaptive Momentum" (2026), published for JAX only.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import (
    ADAM_FLOPS,
    AVERAGE_FLOPS,
    decay_flops,
    decay_groups,
    elements,
    largest,
)

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_SCALAR_BYTES = 5 * 4  # of a tensor, float32: step, two averages, beta1, its bias correction
_RESIDUAL_FLOPS = 1 + 2 + 2  # g - m; its square and magnitude, each with its sum
_MEANS_FLOPS = 1 + 2  # sum; square and its sum
_UPDATE_FLOPS = 2  # p <- p - size m


def _build_stam(model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    from harness.optimizers.implementations.stam import STAM

    return STAM(
        decay_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        **config.options,
    )


def _build_lite(model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    from harness.optimizers.implementations.stam import STAMLite

    return STAMLite(
        decay_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        **config.options,
    )


def _stam_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int:
    """Two moments in the parameter's dtype, five float32 numbers a tensor."""
    return 2 * parameter_bytes * elements(specs) + _SCALAR_BYTES * len(specs)


def _lite_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int:
    """One moment in the parameter's dtype, five float32 numbers a tensor."""
    return parameter_bytes * elements(specs) + _SCALAR_BYTES * len(specs)


def _stam_flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """AdamW's 13 for each element, 5 for the residual, and the decay; finite gradients."""
    return (ADAM_FLOPS + _RESIDUAL_FLOPS) * elements(specs) + decay_flops(config, specs)


def _lite_flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """8 for each element, and the decay; finite gradients."""
    each = _MEANS_FLOPS + AVERAGE_FLOPS + _UPDATE_FLOPS
    return each * elements(specs) + decay_flops(config, specs)


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


ENTRIES = (
    OptimizerEntry(
        name="stam",
        source="harness.optimizers.implementations.stam.STAM",
        summary="AdamW whose momentum falls, tensor by tensor, where gradients scatter around it.",
        needs=None,
        imports=("harness.optimizers.implementations.stam",),
        options=frozenset({"adapt_strength", "tau_decay", "fallback_threshold"}),
        build=_build_stam,
        state_bytes=_stam_bytes,
        flops=_stam_flops,
        step_transient_bytes=_stam_transient,
    ),
    OptimizerEntry(
        name="stam_lite",
        source="harness.optimizers.implementations.stam.STAMLite",
        summary="STAM with one second moment for each tensor; one moment for every element.",
        needs=None,
        imports=("harness.optimizers.implementations.stam",),
        options=frozenset({"adapt_strength", "beta1_update_interval"}),
        build=_build_lite,
        state_bytes=_lite_bytes,
        flops=_lite_flops,
        step_transient_bytes=_lite_transient,
    ),
)
