"""The families of models: from our configuration to the configuration class of transformers.

One function a family; nothing else in the code names one. Importing this needs no transformers.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.config import ModelConfig
from harness.config.checks import reads_images
from harness.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LLAMA_MULTIPLE = 256


def families() -> "dict[str, Callable[[ModelConfig, int], PretrainedConfig]]":
    """Makers of the configuration of transformers from ours and a vocabulary size, by name."""
    return {"gpt2": _gpt2, "llama": _llama, "mixtral": _mixtral, "qwen3": _qwen3, "vit": _vit}


def check_family(config: ModelConfig) -> None:
    """Refuse what the family of `config` cannot have. Raises UserError."""
    _check_experts(config)
    if config.family == "gpt2":
        _check_gpt2(config)
    if reads_images(config):
        _check_images(config)
    elif (config.image_size, config.patch_size, config.channels) != (None, None, None):
        raise UserError(
            f"model.image_size={config.image_size} is not possible for family {config.family}; set "
            "image_size, patch_size and channels to null."
        )


def _check_gpt2(config: ModelConfig) -> None:
    if config.kv_heads not in (None, config.heads):
        raise UserError(
            f"model.kv_heads={config.kv_heads} is not possible for family gpt2; set it to null."
        )
    if config.head_size is not None and config.head_size * config.heads != config.hidden_size:
        raise UserError(
            f"model.head_size={config.head_size} is not possible for family gpt2; set it to null."
        )


def _check_images(config: ModelConfig) -> None:
    for key in ("image_size", "patch_size", "channels"):
        if (getattr(config, key) or 0) < 1:
            raise UserError(f"model.{key}={getattr(config, key)} must be at least 1.")
    if (config.image_size or 0) % (config.patch_size or 1):
        raise UserError(
            f"model.patch_size={config.patch_size} must divide model.image_size="
            f"{config.image_size}."
        )
    for key in ("kv_heads", "head_size"):
        if getattr(config, key) is not None:
            raise UserError(f"model.{key}={getattr(config, key)} is not possible for family vit.")


def _check_experts(config: ModelConfig) -> None:
    if config.family != "mixtral":
        if config.experts is not None or config.experts_per_token is not None:
            raise UserError(
                f"model.experts={config.experts} is not possible for family {config.family}; "
                "set experts and experts_per_token to null."
            )
        return
    if config.experts is None or config.experts < 1:
        raise UserError(f"model.experts={config.experts} must be at least 1 for family mixtral.")
    if config.experts_per_token is None or not 1 <= config.experts_per_token <= config.experts:
        raise UserError(
            f"model.experts_per_token={config.experts_per_token} must lie between 1 and "
            f"model.experts={config.experts}."
        )


def _common(config: ModelConfig) -> dict[str, Any]:
    # No token has a special role for the model: the data decides what ends a document.
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return {
        **special,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": False,
        "attn_implementation": "sdpa",
    }


def _gpt2(config: ModelConfig, vocab_size: int) -> "PretrainedConfig":
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
        **_common(config),
    )


def _llama(config: ModelConfig, vocab_size: int) -> "PretrainedConfig":
    from transformers import LlamaConfig

    return LlamaConfig(vocab_size=vocab_size, **_rotary(config))


def _qwen3(config: ModelConfig, vocab_size: int) -> "PretrainedConfig":
    """Llama with a norm on each head's queries and keys (arXiv 2505.09388, section 2)."""
    from transformers import Qwen3Config

    return Qwen3Config(vocab_size=vocab_size, **_rotary(config))


def _mixtral(config: ModelConfig, vocab_size: int) -> "PretrainedConfig":
    """Llama whose feed-forward layers are mixtures of experts (arXiv 2401.04088).

    The router learns from the loss alone: no balancing term is added to it.
    """
    from transformers import MixtralConfig

    return MixtralConfig(
        vocab_size=vocab_size,
        num_local_experts=config.experts or 1,
        num_experts_per_tok=config.experts_per_token or 1,
        output_router_logits=False,
        **_rotary(config),
    )


def _vit(config: ModelConfig, classes: int) -> "PretrainedConfig":
    """Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929: one token a patch,
    one more that the classifier reads, learned positions."""
    from transformers import ViTConfig

    shape: dict[str, Any] = {
        "num_labels": classes,
        "problem_type": "single_label_classification",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate_size or 4 * config.hidden_size,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "attn_implementation": "sdpa",
    }
    return ViTConfig(**shape)


def _rotary(config: ModelConfig) -> dict[str, Any]:
    """What the families with rotary positions and gated feed-forward layers share."""
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size or _llama_intermediate(config.hidden_size),
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads or config.heads,
        "head_dim": config.head_size or config.hidden_size // config.heads,
        "max_position_embeddings": config.max_positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_dropout": 0.0,
        **_common(config),
    }


def _llama_intermediate(hidden_size: int) -> int:
    """8/3 of the hidden size, rounded up to a multiple of 256: Llama's own rule."""
    return -(-(8 * hidden_size // 3) // _LLAMA_MULTIPLE) * _LLAMA_MULTIPLE
