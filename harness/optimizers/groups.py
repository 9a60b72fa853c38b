"""Parameter groups and sizes that several optimizers share."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.models import ParameterSpec

if TYPE_CHECKING:
    from torch import nn

# Modules of GPT-2, Llama and their relatives that hold one row for each token or position.
_TABLES = frozenset({"wte", "wpe", "embed_tokens", "embed_positions", "embed_in", "lm_head"})


def is_hidden_matrix(name: str, shape: Sequence[int]) -> bool:
    """A 2-D weight that is neither an embedding nor the output head."""
    return len(shape) == 2 and not _TABLES.intersection(name.split("."))


def decay_groups(model: "nn.Module", weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: decay for matrices, none for biases and norms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return drop_empty(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    )


def drop_empty(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Only the groups that hold parameters."""
    return [group for group in groups if group["params"]]


def elements(specs: Sequence[ParameterSpec]) -> int:
    """Number of elements of all parameters."""
    return sum(math.prod(spec.shape) for spec in specs)
