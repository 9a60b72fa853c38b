"""Mixtral: Llama whose feed-forward layers are mixtures of experts."""

from typing import TYPE_CHECKING

from harness.config import ModelConfig
from harness.errors import UserError
from harness.models.decoder import rotary

if TYPE_CHECKING:
    from transformers import PretrainedConfig

INPUTS = "texts"
ROTARY = True
KEYS = frozenset({"kv_heads", "head_size", "experts", "experts_per_token"})


def check(config: ModelConfig) -> None:
    """Each token goes to some of the experts."""
    if config.experts is None or config.experts < 1:
        raise UserError(f"model.experts={config.experts} must be at least 1 for family mixtral.")
    if config.experts_per_token is None or not 1 <= config.experts_per_token <= config.experts:
        raise UserError(
            f"model.experts_per_token={config.experts_per_token} must lie between 1 and "
            f"model.experts={config.experts}."
        )


def build(config: ModelConfig, vocab_size: int) -> "PretrainedConfig":
    """Jiang et al., arXiv 2401.04088; the router learns from the loss alone, without balancing."""
    from transformers import MixtralConfig

    return MixtralConfig(
        vocab_size=vocab_size,
        num_local_experts=config.experts or 1,
        num_experts_per_tok=config.experts_per_token or 1,
        output_router_logits=False,
        **rotary(config),
    )
