"""APOLLO and APOLLO-Mini: gradients scaled by a low-rank AdamW (see `apollo_optimizer`).

Zhu et al., "APOLLO: SGD-like Memory, AdamW-level Performance", arXiv 2412.05270. Embeddings, the
head, biases and norms take AdamW, as in the authors' training script.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers import galore
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import (
    AVERAGE_FLOPS,
    SQUARE_AVERAGE_FLOPS,
    decay_flops,
    decay_groups,
    drop_empty,
    is_hidden_matrix,
)

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_SETTINGS = ("scale_type", "scale", "update_proj_gap")
# Both moments; root over its correction plus eps (3), quotient, correction.
_DIRECTION_FLOPS = AVERAGE_FLOPS + SQUARE_AVERAGE_FLOPS + 3 + 2
_NORMS_FLOPS = 2 * 2  # of R and of R~
_SCALING_FLOPS = 1 + 2 + 1 + 1  # G S, its norm, the bound on growth, sqrt(scale)
_UPDATE_FLOPS = 2


def _build(model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    from harness.optimizers.implementations.apollo import APOLLO

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    rank = galore.rank_of(config, ((name, p.shape) for name, p in named))
    hidden = [p for name, p in named if is_hidden_matrix(name, p.shape)]
    identities = {id(p) for p in hidden}
    groups: list[dict[str, Any]] = [
        {"params": hidden, "weight_decay": config.weight_decay, "rank": rank}
    ]
    for group in decay_groups(model, config.weight_decay):
        rest = [p for p in group["params"] if id(p) not in identities]
        groups.append({**group, "params": rest})
    return APOLLO(
        drop_empty(groups),
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        **{key: config.options[key] for key in _SETTINGS if key in config.options},
    )


def _state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int:
    """GaLore's projection and moments, and the norm of the last update of each hidden matrix."""
    hidden = sum(is_hidden_matrix(spec.name, spec.shape) for spec in specs)
    return galore.projected_bytes(config, specs, parameter_bytes) + parameter_bytes * hidden


def _flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """For an m x n hidden matrix with m <= n and r = min(rank, m): 2 m n r + 16 n r + 7 m n.

    Those are the projection, Adam's direction and two norms, the scaling and the step. Every other
    element takes 14. And the decay. Algorithm 1 of the source; random numbers count nothing.
    """
    rank = galore.rank_of(config, ((spec.name, spec.shape) for spec in specs))
    total = decay_flops(config, specs)
    for spec in specs:
        if is_hidden_matrix(spec.name, spec.shape):
            m, n = sorted(spec.shape)
            r = min(rank, m)
            total += 2 * m * n * r + (_DIRECTION_FLOPS + _NORMS_FLOPS) * n * r
            total += (_SCALING_FLOPS + _UPDATE_FLOPS) * m * n
        else:
            total += (_DIRECTION_FLOPS + _UPDATE_FLOPS) * math.prod(spec.shape)
    return total


def _entry(name: str, summary: str) -> OptimizerEntry:
    return OptimizerEntry(
        name=name,
        source="harness.optimizers.implementations.apollo.APOLLO",
        summary=summary,
        needs=None,
        imports=("harness.optimizers.implementations.apollo",),
        options=frozenset({"rank", *_SETTINGS}),
        build=_build,
        state_bytes=_state_bytes,
        flops=_flops,
    )


ENTRIES = (
    _entry("apollo", "Gradients of hidden matrices scaled by channel with a low-rank AdamW."),
    _entry("apollo_mini", "APOLLO at rank 1 with one factor for each matrix."),
)
