"""Whole-model state on the real shapes of published models, counted on the meta device."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Config = tuple[str, dict[str, Any]]


def _decoder(
    family: str, vocabulary: int, hidden: int, intermediate: int, layers: int, **own: Any
) -> Config:
    """A decoder of the Llama lineage; all those below have eight key-value heads."""
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    }
    return f"{family}Config", sizes | own


# Name -> class of transformers and its arguments, from each model's config.json on huggingface.co.
MODELS: dict[str, Config] = {
    # openai-community/gpt2: the defaults of the class, typed out
    "GPT-2 124M": (
        "GPT2Config",
        {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12},
    ),
    # meta-llama/Meta-Llama-3-8B
    "Llama-3 8B": _decoder("Llama", 128256, 4096, 14336, 32),
    # Qwen/Qwen3-0.6B
    "Qwen3 0.6B": _decoder(
        "Qwen3",
        151936,
        1024,
        3072,
        28,
        num_attention_heads=16,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    # Qwen/Qwen3-8B
    "Qwen3 8B": _decoder("Qwen3", 151936, 4096, 12288, 36, head_dim=128),
    # mistralai/Mixtral-8x7B-v0.1: experts stacked in 3-D tensors
    "Mixtral 8x7B": _decoder(
        "Mixtral", 32000, 4096, 14336, 32, num_local_experts=8, num_experts_per_tok=2
    ),
}


def meta_parameters(name: str) -> "list[nn.Parameter]":
    """Return every distinct parameter of a model of MODELS, bfloat16, on the meta device."""
    import torch
    import transformers

    kind, arguments = MODELS[name]
    config = getattr(transformers, kind)(**arguments)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return list(model.parameters())
