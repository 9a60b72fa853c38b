"""GaLore: Adam in a low-rank projection of the gradient of hidden matrices (pytorch_optimizer).

Zhao et al., "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
arXiv 2403.03507. Embeddings, the head, biases and norms keep plain Adam with decoupled decay, as
in the authors' training script. Every `update_proj_gap` steps a singular value decomposition of
each hidden matrix's gradient renews the projection: those steps are slow.

`state_dict()` holds one projector object for each hidden matrix, which `torch.load` has to be
allowed (`checkpoint_classes`).
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers.closed_forms import AVERAGE_FLOPS, SQUARE_AVERAGE_FLOPS, decay_flops
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import drop_empty, hidden_and_rest, is_hidden_matrix, settings
from harness.optimizers.options import flag, integer, number

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_RANK_SHARE = 4
_DIRECTION_FLOPS = AVERAGE_FLOPS + SQUARE_AVERAGE_FLOPS + 3  # both moments, m / (sqrt(v) + eps)


def rank_of(config: OptimizerConfig, named_shapes: Iterable[tuple[str, Sequence[int]]]) -> int:
    """The `rank` option; null is a quarter of the hidden size.

    The hidden size is the longest of the hidden matrices' shorter sides: every block has a square
    or a wide matrix over the residual stream, also where keys and values are fewer.
    """
    rank: int | None = config.options["rank"]
    if rank is not None:
        return rank
    sides = [min(shape) for name, shape in named_shapes if is_hidden_matrix(name, shape)]
    return max(1, max(sides, default=1) // _RANK_SHARE)


def groups_of(
    model: "nn.Module", config: OptimizerConfig, **projection: Any
) -> list[dict[str, Any]]:
    """A group of hidden matrices with their rank and `projection`, and the rest without."""
    hidden, rest = hidden_and_rest(model, config.weight_decay)
    named = ((name, p.shape) for name, p in model.named_parameters() if p.requires_grad)
    own = {"weight_decay": config.weight_decay, "rank": rank_of(config, named), **projection}
    return drop_empty([{"params": hidden, **own}, *rest])


def _build(kind: Any, model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    own = {key: config.options[key] for key in ("update_proj_gap", "scale")}
    groups = groups_of(model, config, projection_type="std", **own)
    optimizer: Optimizer = kind(groups, **settings(config), foreach=config.options["foreach"])
    return optimizer


def projected_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int:
    """For an m x n hidden matrix with m <= n and r = min(rank, m): m r + 2 n r elements.

    Those are the projection and two projected moments; every other tensor has two full moments.
    All in the parameter's dtype; step counts are Python numbers.
    """
    rank = rank_of(config, ((spec.name, spec.shape) for spec in specs))
    total = 0
    for spec in specs:
        if is_hidden_matrix(spec.name, spec.shape):
            short, long = sorted(spec.shape)
            total += min(rank, short) * (short + 2 * long)
        else:
            total += 2 * math.prod(spec.shape)
    return parameter_bytes * total


def _flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """For an m x n hidden matrix with m <= n and r = min(rank, m): 4 m n r + 10 n r + 3 m n.

    Those are the two projections, Adam on n r elements, scaling and the step. On top comes the
    singular value decomposition, 6 n m^2 + 20 m^3 (Golub and Van Loan, Matrix Computations, 4th
    edition, figure 8.6.1, R-SVD of a thin matrix), spread over `update_proj_gap` steps. Every
    other element takes 12. And the decay. Counted from algorithm 2 of the source.
    """
    rank = rank_of(config, ((spec.name, spec.shape) for spec in specs))
    gap = config.options["update_proj_gap"]
    total = decay_flops(config, specs)
    for spec in specs:
        if is_hidden_matrix(spec.name, spec.shape):
            m, n = sorted(spec.shape)
            r = min(rank, m)
            total += 4 * m * n * r + _DIRECTION_FLOPS * n * r + 3 * m * n
            total += (6 * n * m**2 + 20 * m**3) // gap
        else:
            total += (_DIRECTION_FLOPS + 2) * math.prod(spec.shape)
    return total


ENTRY = OptimizerEntry(
    name="galore",
    source="pytorch_optimizer.GaLore",
    summary="Adam in a low-rank projection of hidden matrices' gradients; plain Adam elsewhere.",
    needs="pytorch_optimizer",
    options={
        "rank": integer(1, None, null=True),
        "update_proj_gap": integer(1, 200),
        "scale": number(0.25, above=0),
        "foreach": flag(False, null=True),
    },
    checkpoint_classes=("pytorch_optimizer.optimizer.utils.galore.GaLoreProjector",),
    build=_build,
    state_bytes=projected_bytes,
    flops=_flops,
)
