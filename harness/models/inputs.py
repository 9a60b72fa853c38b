"""Input kind and sequence length of a model, and dummy batches; importing this needs no torch."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.config import ROTARY_FAMILIES, ModelConfig
from harness.config.checks import reads_images

if TYPE_CHECKING:
    import torch


def sequence_length(config: ModelConfig, seq_len: int) -> int:
    """Tokens of one example: `seq_len`, or of an image its patches and the classifier's token."""
    if not reads_images(config):
        return seq_len
    return ((config.image_size or 0) // (config.patch_size or 1)) ** 2 + 1


def for_length(config: ModelConfig, seq_len: int) -> ModelConfig:
    """The model for sequences of `seq_len` tokens: rotary positions are not bounded by a table.

    `max_positions` of a rotary family built from its shape rises to `seq_len`; else unchanged.
    """
    if config.family not in ROTARY_FAMILIES or config.path is not None:
        return config
    return replace(config, max_positions=max(config.max_positions, seq_len))


def example(config: ModelConfig, size: int, seq_len: int) -> "dict[str, torch.Tensor]":
    """Inputs of the model for `size` examples, all zero, on the caller's default device."""
    import torch

    if not reads_images(config):
        ids = torch.zeros(size, seq_len, dtype=torch.int64)
        return {"input_ids": ids, "labels": ids}
    side = config.image_size or 0
    pixels = torch.zeros(size, config.channels or 0, side, side)
    return {"pixel_values": pixels, "labels": torch.zeros(size, dtype=torch.int64)}


def auto_class(config: ModelConfig) -> Any:
    """The class of transformers that builds a model of this family with its head."""
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification

    return AutoModelForImageClassification if reads_images(config) else AutoModelForCausalLM
