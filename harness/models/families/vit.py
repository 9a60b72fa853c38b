"""ViT: a classifier of images, one token a patch, one more that it reads, learned positions."""

from typing import TYPE_CHECKING, Any

from harness.config import ModelConfig
from harness.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

INPUTS = "images"
ROTARY = False
KEYS = frozenset({"image_size", "patch_size", "channels"})


def check(config: ModelConfig) -> None:
    """Patches divide the image."""
    for key in ("image_size", "patch_size", "channels"):
        if (getattr(config, key) or 0) < 1:
            raise UserError(f"model.{key}={getattr(config, key)} must be at least 1.")
    if (config.image_size or 0) % (config.patch_size or 1):
        raise UserError(
            f"model.patch_size={config.patch_size} must divide model.image_size="
            f"{config.image_size}."
        )


def build(config: ModelConfig, classes: int) -> "PretrainedConfig":
    """Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929."""
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
