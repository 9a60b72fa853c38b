"""Build a model: from a shape with random weights, or a pretrained decoder from `model.path`.

Importing this module needs neither torch nor transformers; building a model does.
"""

import logging as standard_logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from harness.config import ModelConfig
from harness.config.checks import reads_images
from harness.errors import UserError
from harness.models.families import check_family, transformers_config
from harness.models.files import check_files, locate
from harness.models.inputs import auto_class, sequence_length
from harness.models.lora import add_lora, check_lora

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ParameterSpec:
    """Name, shape and `requires_grad` of one parameter; a tied one appears once.

    `head_size` is that of the model's attention, in elements; None where it is not known.
    """

    name: str
    shape: tuple[int, ...]
    trainable: bool
    head_size: int | None = None


def check(config: ModelConfig) -> None:
    """Answer what a user can get wrong in the model group, without importing torch.

    Raises:
        UserError: unknown family, sizes that do not divide, a path that cannot be loaded.
    """
    if config.path is not None and reads_images(config):
        raise UserError(
            f"model.path={config.path!r} is not possible for family {config.family}, which is "
            "trained from scratch; set it to null."
        )
    check_lora(config)
    if config.path is not None:
        found = check_files(config.path, "model.path")
        folder = Path(found.name)
        if found.gguf is None and folder.exists() and not (folder / "config.json").is_file():
            raise UserError(f"model.path={config.path!r} is no model folder (no config.json).")
        return
    check_family(config)
    for key in ("hidden_size", "layers", "heads", "max_positions"):
        if getattr(config, key) < 1:
            raise UserError(f"model.{key}={getattr(config, key)} must be at least 1.")
    if config.head_size is None and config.hidden_size % config.heads:
        raise UserError(
            f"model.heads={config.heads} must divide model.hidden_size={config.hidden_size}."
        )
    if config.kv_heads is not None and (config.kv_heads < 1 or config.heads % config.kv_heads):
        raise UserError(f"model.kv_heads={config.kv_heads} must divide model.heads={config.heads}.")


def max_positions(config: ModelConfig) -> int:
    """Longest sequence in tokens that the model of `config` takes."""
    if config.path is None:
        return sequence_length(config, config.max_positions)
    limit = getattr(_pretrained_config(config.path), "max_position_embeddings", None)
    return int(limit) if limit is not None else config.max_positions


def build_model(config: ModelConfig, vocab_size: int, seed: int) -> "PreTrainedModel":
    """A causal language model or classifier in float32 on the CPU, training mode, dropout 0.

    Its weights depend on `config`, `vocab_size` and `seed` alone; torch's random state is left as
    it was. With `path` the weights are the pretrained ones and `seed` is for LoRA alone.

    Args:
        config: the model group of a run.
        vocab_size: token ids or classes of the data; used where `config.vocab_size` is null.
        seed: seed of the initial weights.

    Raises:
        UserError: as `check`; a vocabulary smaller than the data's; a path that does not load.
    """
    import torch

    check(config)
    with _quiet():
        if config.path is not None:
            model = _pretrained(config.path, vocab_size)
            return add_lora(_checkpointing(model, config), config, seed)
        shape = _shape(config, vocab_size)
        with torch.random.fork_rng(devices=[]):
            # Only the CPU generator: torch.manual_seed would reseed the CUDA generators too.
            torch.default_generator.manual_seed(seed)
            model = auto_class(config).from_config(shape, dtype=torch.float32)
    return add_lora(_checkpointing(_for_training(model), config), config, seed)


def _checkpointing(model: "PreTrainedModel", config: ModelConfig) -> "PreTrainedModel":
    if config.activation_checkpointing:
        model.activation_checkpointing_enable()
    return model


def meta_shapes(config: ModelConfig, vocab_size: int) -> list[ParameterSpec]:
    """Every distinct parameter of the model, in the model's order, without allocating any.

    Raises:
        UserError: as `build_model`.
    """
    import torch

    with torch.device("meta"):
        model = untrained_model(config, vocab_size)
    return specs_of(model)


def specs_of(model: "nn.Module") -> list[ParameterSpec]:
    """Every distinct parameter of a model that exists, in its order."""
    head_size = head_size_of(model)
    return [
        ParameterSpec(name, tuple(p.shape), p.requires_grad, head_size)
        for name, p in model.named_parameters()
    ]


def head_size_of(model: "nn.Module") -> int | None:
    """Elements of one attention head by the model's configuration, None where it has none."""
    config = getattr(model, "config", None)
    size = getattr(config, "head_dim", None)
    heads = getattr(config, "num_attention_heads", None)
    if size is None and heads:
        size = getattr(config, "hidden_size", 0) // heads or None
    return size


def untrained_model(
    config: ModelConfig,
    vocab_size: int,
    layers: int | None = None,
    dtype: "torch.dtype | None" = None,
) -> "PreTrainedModel":
    """The architecture alone, in training mode, on the caller's default device; float32 by default.

    For devices and modes without memory (`torch.device("meta")`, FakeTensorMode): nothing is read
    but the configuration, also with `path`. `layers`, if given, replaces the number of layers.

    Raises:
        UserError: as `build_model`.
    """
    import torch

    check(config)
    with _quiet():
        path = config.path
        shape = _shape(config, vocab_size) if path is None else _pretrained_config(path)
        if layers is not None:
            shape.num_hidden_layers = layers
        kind = torch.float32 if dtype is None else dtype
        model: PreTrainedModel = auto_class(config).from_config(shape, dtype=kind)
    return add_lora(_for_training(model), config, seed=0)


def _shape(config: ModelConfig, vocab_size: int) -> "PretrainedConfig":
    size = config.vocab_size if config.vocab_size is not None else vocab_size
    if size < vocab_size:
        raise UserError(
            f"model.vocab_size={size} is below the {vocab_size} token ids of the data; "
            "set it to null to take the data's."
        )
    return transformers_config(config, size)


def _pretrained_config(path: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            **locate(path, "model.path").arguments
        )
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={path!r} has no configuration that can be loaded.") from error
    for key, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in key or key.endswith("pdrop")):
            setattr(config, key, 0.0)
    config.use_cache = False
    return config


def _pretrained(path: str, vocab_size: int) -> "PreTrainedModel":
    import torch
    from transformers import AutoModelForCausalLM

    config = _pretrained_config(path)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            **locate(path, "model.path").arguments,
            config=config,
            dtype=torch.float32,
            attn_implementation="sdpa",
        )
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={path!r} cannot be loaded as a language model.") from error
    size = cast("torch.Tensor", model.get_input_embeddings().weight).shape[0]
    if size < vocab_size:
        raise UserError(
            f"model.path={path!r} knows {size} token ids, the data has {vocab_size}; "
            "use the model's own tokenizer (data.tokenizer)."
        )
    return _for_training(model)


def _for_training(model: "PreTrainedModel") -> "PreTrainedModel":
    if "ImageClassification" not in type(model).__name__:
        # Without it transformers warns about GPT-2, whose class name does not end in ForCausalLM.
        model.loss_type = "ForCausalLM"
    return model.train()


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its advice and progress bars, its settings restored afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    disabled = standard_logging.root.manager.disable
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # It imports torchao where that is installed, which tells of the GPU kernels it cannot load.
    standard_logging.disable(standard_logging.WARNING)
    try:
        yield
    finally:
        standard_logging.disable(disabled)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
