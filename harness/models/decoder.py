"""Settings of transformers that several decoder families share."""

from typing import Any

from harness.config import ModelConfig

_LLAMA_MULTIPLE = 256


def common(config: ModelConfig) -> dict[str, Any]:
    """Settings of every decoder: no special tokens, no cache, torch's own attention."""
    # No token has a special role for the model: the data decides what ends a document.
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return {
        **special,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": False,
        "attn_implementation": "sdpa",
    }


def rotary(config: ModelConfig) -> dict[str, Any]:
    """Settings of families with rotary positions and gated feed-forward layers."""
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size or llama_intermediate(config.hidden_size),
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads or config.heads,
        "head_dim": config.head_size or config.hidden_size // config.heads,
        "max_position_embeddings": config.max_positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_dropout": 0.0,
        **common(config),
    }


def llama_intermediate(hidden_size: int) -> int:
    """8/3 of the hidden size, rounded up to a multiple of 256: Llama's own rule."""
    return -(-(8 * hidden_size // 3) // _LLAMA_MULTIPLE) * _LLAMA_MULTIPLE
