"""APOLLO and APOLLO-Mini: gradients scaled by a low-rank AdamW (see `implementations.apollo`).

Zhu et al., "APOLLO: SGD-like Memory, AdamW-level Performance", arXiv 2412.05270. Embeddings, the
head, biases and norms take AdamW, as in the authors' training script.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers import galore
from harness.optimizers.closed_forms import AVERAGE_FLOPS, SQUARE_AVERAGE_FLOPS, decay_flops
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import is_hidden_matrix, settings
from harness.optimizers.options import choice, integer, number

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

# Both moments; root over its correction plus eps (3), quotient, correction.
_DIRECTION_FLOPS = AVERAGE_FLOPS + SQUARE_AVERAGE_FLOPS + 3 + 2
_NORMS_FLOPS = 2 * 2  # of R and of R~
_SCALING_FLOPS = 1 + 2 + 1 + 1  # G S, its norm, the bound on growth, sqrt(scale)
_UPDATE_FLOPS = 2


def _build(kind: Any, model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    own = {key: value for key, value in config.options.items() if key != "rank"}
    optimizer: Optimizer = kind(galore.groups_of(model, config), **settings(config), **own)
    return optimizer


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
        options={
            "rank": integer(1, None, null=True),
            "scale_type": choice("channel", "tensor", default="channel"),
            "scale": number(1.0, above=0),
            "update_proj_gap": integer(1, 200),
        },
        build=_build,
        state_bytes=_state_bytes,
        flops=_flops,
    )


ENTRIES = (
    _entry("apollo", "Gradients of hidden matrices scaled by channel with a low-rank AdamW."),
    _entry("apollo_mini", "APOLLO at rank 1 with one factor for each matrix."),
)
