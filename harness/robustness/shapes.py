"""Whole-model state on the real shapes of published models, counted on the meta device."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

Shapes = list[tuple[int, ...]]


def _gpt2_124m() -> "PretrainedConfig":
    """huggingface.co/openai-community/gpt2, config.json: the defaults of the class, typed out."""
    from transformers import GPT2Config

    return GPT2Config(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12)


def _llama3_8b() -> "PretrainedConfig":
    """huggingface.co/meta-llama/Meta-Llama-3-8B, config.json."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )


def _qwen3_600m() -> "PretrainedConfig":
    """huggingface.co/Qwen/Qwen3-0.6B, config.json."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )


def _qwen3_8b() -> "PretrainedConfig":
    """huggingface.co/Qwen/Qwen3-8B, config.json."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
    )


def _mixtral_8x7b() -> "PretrainedConfig":
    """huggingface.co/mistralai/Mixtral-8x7B-v0.1, config.json; experts stacked in 3-D tensors."""
    from transformers import MixtralConfig

    return MixtralConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_local_experts=8,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
    )


MODELS: "dict[str, Callable[[], PretrainedConfig]]" = {
    "GPT-2 124M": _gpt2_124m,
    "Llama-3 8B": _llama3_8b,
    "Qwen3 0.6B": _qwen3_600m,
    "Qwen3 8B": _qwen3_8b,
    "Mixtral 8x7B": _mixtral_8x7b,
}


def meta_parameters(name: str) -> "list[nn.Parameter]":
    """Return every distinct parameter of a model of MODELS, bfloat16, on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(MODELS[name](), dtype=torch.bfloat16)
    return list(model.parameters())
