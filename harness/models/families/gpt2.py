"""GPT-2: learned positions, LayerNorm, biases, heads as wide as hidden size over heads."""

from typing import TYPE_CHECKING

from harness.config import ModelConfig
from harness.errors import UserError
from harness.models.decoder import common

if TYPE_CHECKING:
    from transformers import PretrainedConfig

INPUTS = "texts"
ROTARY = False
KEYS = frozenset({"kv_heads", "head_size"})


def check(config: ModelConfig) -> None:
    """Every head has its own keys and values, and all heads together the hidden size."""
    for key, same in (
        ("kv_heads", config.kv_heads in (None, config.heads)),
        ("head_size", config.head_size in (None, config.hidden_size / config.heads)),
    ):
        if not same:
            raise UserError(
                f"model.{key}={getattr(config, key)} is not possible for family gpt2; "
                "set it to null."
            )


def build(config: ModelConfig, vocab_size: int) -> "PretrainedConfig":
    """Radford et al., "Language Models are Unsupervised Multitask Learners" (2019)."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=config.max_positions,
        n_embd=config.hidden_size,
        n_layer=config.layers,
        n_head=config.heads,
        n_inner=config.intermediate_size,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **common(config),
    )
