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
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import (
    ADAM_FLOPS,
    AVERAGE_FLOPS,
    any_settings,
    decay_flops,
    decay_groups,
    drop_empty,
    elements,
    is_hidden_matrix,
)

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_STEP_BYTES = 4
_DEFAULTS: dict[str, Any] = {
    "momentum": 0.95,
    "nesterov": True,
    "ns_steps": 5,
    "adjust_lr_fn": "match_rms_adamw",
}
_NORM_FLOPS = 2 + 1  # its square and sum; quotient
_ITERATION_FLOPS = 2  # a X + ...
_UPDATE_FLOPS = 2  # p - size u


def _build(model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    from torch.optim import AdamW, Muon

    from harness.optimizers.implementations.combined import Combined

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = [p for name, p in named if is_hidden_matrix(name, p.shape)]
    identities = {id(p) for p in hidden}
    rest = [
        {**group, "params": [p for p in group["params"] if id(p) not in identities]}
        for group in decay_groups(model, config.weight_decay)
    ]
    own = {key: config.options.get(key, value) for key, value in _DEFAULTS.items()}
    parts: list[Optimizer] = []
    if hidden:
        parts.append(Muon(hidden, lr=config.lr, weight_decay=config.weight_decay, **own))
    if groups := drop_empty(rest):
        betas = (config.betas[0], config.betas[1])
        fused = config.options.get("fused", True)
        parts.append(AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=fused))
    return Combined(parts)


def _state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int:
    """One moment for hidden matrices; for the rest two and a float32 step a tensor."""
    rest = [spec for spec in specs if not is_hidden_matrix(spec.name, spec.shape)]
    moments = elements(specs) + elements(rest)
    return parameter_bytes * moments + _STEP_BYTES * len(rest)


def _flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """For an m x n hidden matrix with m <= n and k iterations: k (4 m^2 n + 2 m^3) and elementwise.

    Those are X X^T, its square, and their product with X; then the averages (the second is
    Nesterov's), norm and update. AdamW's 13 elsewhere. And the decay.
    """
    steps = int(config.options.get("ns_steps", _DEFAULTS["ns_steps"]))
    averages = 1 + bool(config.options.get("nesterov", _DEFAULTS["nesterov"]))
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
    needs=None,
    imports=("torch.optim",),
    options=frozenset({*_DEFAULTS, "fused"}),
    build=_build,
    state_bytes=_state_bytes,
    flops=_flops,
    shards=any_settings,
)
