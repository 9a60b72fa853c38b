"""Llama: rotary positions, RMSNorm, gated feed-forward layers, grouped keys and values."""

from typing import TYPE_CHECKING

from harness.config import ModelConfig
from harness.models.decoder import rotary

if TYPE_CHECKING:
    from transformers import PretrainedConfig

INPUTS = "texts"
ROTARY = True
KEYS = frozenset({"kv_heads", "head_size"})


def build(config: ModelConfig, vocab_size: int) -> "PretrainedConfig":
    """Touvron et al., arXiv 2302.13971."""
    from transformers import LlamaConfig

    return LlamaConfig(vocab_size=vocab_size, **rotary(config))
