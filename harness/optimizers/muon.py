"""Muon: orthogonalised momentum for hidden matrices, AdamW for everything else (torch).

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). Its rate is
adjusted as by Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982: with
`match_rms_adamw` updates have AdamW's root mean square, so that both parts share AdamW's rate.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers.closed_forms import (
    ADAM_FLOPS,
    AVERAGE_FLOPS,
    STEP_BYTES,
    decay_flops,
    elements,
)
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import hidden_and_rest, is_hidden_matrix, settings
from harness.optimizers.options import choice, flag, integer, number

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_NORM_FLOPS = 2 + 1  # its square and sum; quotient
_ITERATION_FLOPS = 2  # a X + ...
_UPDATE_FLOPS = 2  # p - size u


def _build(kind: Any, model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    from torch.optim import AdamW

    from harness.optimizers.implementations.combined import Combined

    hidden, rest = hidden_and_rest(model, config.weight_decay)
    own = {key: value for key, value in config.options.items() if key != "fused"}
    parts: list[Optimizer] = []
    if hidden:
        parts.append(kind(hidden, lr=config.lr, weight_decay=config.weight_decay, **own))
    if rest:
        parts.append(AdamW(rest, **settings(config), fused=config.options["fused"]))
    return Combined(parts)


def _state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int:
    """One moment for hidden matrices; for the rest two and a float32 step a tensor."""
    rest = [spec for spec in specs if not is_hidden_matrix(spec.name, spec.shape)]
    moments = elements(specs) + elements(rest)
    return parameter_bytes * moments + STEP_BYTES * len(rest)


def _flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """For an m x n hidden matrix with m <= n and k iterations: k (4 m^2 n + 2 m^3) and elementwise.

    Those are X X^T, its square, and their product with X; then the averages (the second is
    Nesterov's), norm and update. AdamW's 13 elsewhere. And the decay.
    """
    steps = config.options["ns_steps"]
    averages = 1 + config.options["nesterov"]
    each = averages * AVERAGE_FLOPS + _NORM_FLOPS + _ITERATION_FLOPS * steps + _UPDATE_FLOPS
    total = decay_flops(config, specs)
    for spec in specs:
        if is_hidden_matrix(spec.name, spec.shape):
            m, n = sorted(spec.shape)
            total += steps * (4 * m * m * n + 2 * m**3) + each * m * n
        else:
            total += ADAM_FLOPS * math.prod(spec.shape)
    return total


ENTRY = OptimizerEntry(
    name="muon",
    source="torch.optim.Muon",
    summary="Orthogonalised momentum for hidden matrices; AdamW elsewhere.",
    imports=("torch.optim", "harness.optimizers.implementations.combined"),
    options={
        "momentum": number(0.95, least=0, below=1),
        "nesterov": flag(True),
        "ns_steps": integer(1, 5, most=99),
        "adjust_lr_fn": choice("original", "match_rms_adamw", default="match_rms_adamw"),
        "fused": flag(True, null=True),
    },
    build=_build,
    state_bytes=_state_bytes,
    flops=_flops,
    shards=True,
)
