"""Qwen3: Llama with a norm on each head's queries and keys."""

from typing import TYPE_CHECKING

from harness.config import ModelConfig
from harness.models.decoder import rotary

if TYPE_CHECKING:
    from transformers import PretrainedConfig

INPUTS = "texts"
ROTARY = True
KEYS = frozenset({"kv_heads", "head_size"})


def build(config: ModelConfig, vocab_size: int) -> "PretrainedConfig":
    """Yang et al., arXiv 2505.09388, section 2."""
    from transformers import Qwen3Config

    return Qwen3Config(vocab_size=vocab_size, **rotary(config))
