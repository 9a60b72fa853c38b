"""LoRA: low-rank updates beside frozen weights (Hu et al., arXiv 2106.09685), from peft."""

import importlib.util
from typing import TYPE_CHECKING, cast

from harness.config import ModelConfig
from harness.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_lora(config: ModelConfig) -> None:
    """Refuse LoRA where peft is missing. Raises UserError; imports nothing."""
    if config.lora_rank is not None and importlib.util.find_spec("peft") is None:
        raise UserError(
            f"model.lora_rank={config.lora_rank} needs the package peft: "
            "pip install peft -c constraints.txt."
        )


def add_lora(model: "PreTrainedModel", config: ModelConfig, seed: int) -> "PreTrainedModel":
    """The model with adapters on every linear layer but the head, all else frozen.

    The first factor of each adapter is drawn with `seed`, the second is zero, so that the model
    starts as it was. Without `lora_rank` the model itself. torch's random state stays as it was.
    """
    if config.lora_rank is None:
        return model
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        target_modules="all-linear",
        # Some families store the weights of their linear layers transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return cast("PreTrainedModel", get_peft_model(model, settings)).train()
