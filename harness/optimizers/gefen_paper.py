"""Gefen as published: our transcription of the authors' package 1.2.3 (gefen_paper_optimizer)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import decay_groups

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def _build(model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    from harness.optimizers.implementations.gefen_paper import GefenPaper

    groups = decay_groups(model, config.weight_decay)
    betas = (config.betas[0], config.betas[1])
    return GefenPaper(groups, lr=config.lr, betas=betas, eps=config.eps)


def _state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> None:
    """The first gradients decide which elements share a second moment: not known in advance."""
    return None


ENTRY = OptimizerEntry(
    name="gefen_paper",
    source="our transcription of gefen 1.2.3 (arXiv 2606.13894)",
    summary="The published form: blocks from the first gradient, nearest codes, plain PyTorch.",
    needs=None,
    imports=("gefen",),
    options=frozenset(),
    build=_build,
    state_bytes=_state_bytes,
)
