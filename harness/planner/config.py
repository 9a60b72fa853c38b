"""What a plan is asked for, read from key=value words as `gefen-bench` takes them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import yaml

from harness import optimizers
from harness.config import PRECISIONS, ModelConfig, OptimizerConfig, from_dict
from harness.config.checks import check_model
from harness.config.groups import load_group, names
from harness.errors import UserError
from harness.models.inputs import for_length, sequence_length

GIB = 2**30
DEVICES = ("cuda", "cpu")
ALIASES = {"bf16": "bf16_mixed"}  # what --bf16 of transformers' Trainer means
_LEAST = {"seq_len": 2, "micro_batch": 1, "grad_accumulation": 1, "shards": 1, "vocab_size": 1}
_MOST_TOKENS = 2**40  # of a pass: sizes in bytes of its tensors then fit 64 bits
_SETTINGS = (*_LEAST, "precision", "device", "headroom_gib")
_KEYS = ("model", "optimizer", *_SETTINGS, "family")
_MODEL_KEYS = sorted(item.name for item in fields(ModelConfig))


@dataclass
class PlanConfig:
    """A model and the optimizers to plan it for.

    `shards` is the number of ranks that FSDP spreads parameters, gradients and state over.
    `vocab_size` counts where the model's own is null. `headroom_gib` of a card stays free: the
    CUDA context, libraries' workspaces and fragments, which no plan contains. `device` cpu plans a
    process whose heap keeps what is freed (`harness.planner.memory`), but with `exact_peaks`
    (`harness.config.types.TaskConfig`).
    """

    model: ModelConfig
    optimizers: list[OptimizerConfig]
    seq_len: int = 1024
    micro_batch: int = 1
    grad_accumulation: int = 1
    precision: str = "bf16_mixed"
    shards: int = 1
    vocab_size: int = 4096
    headroom_gib: float = 1.0
    device: str = "cuda"
    exact_peaks: bool = False

    @property
    def vocabulary(self) -> int:
        """Token ids of the model."""
        return self.model.vocab_size or self.vocab_size

    @property
    def element_bytes(self) -> int:
        """Bytes of one element of a parameter and of its gradient."""
        return 2 if self.precision == "bf16_pure" else 4

    @property
    def compute_bytes(self) -> int:
        """Bytes of one element in the dtype of matrix products."""
        return 4 if self.precision == "fp32" else 2


def label(optimizer: OptimizerConfig) -> str:
    """What an optimizer with its settings is called in answers."""
    return optimizer.variant or optimizer.name


@dataclass
class Words:
    """The command line's key=value words, checked for their names only."""

    values: dict[str, str] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


def split(words: Sequence[str]) -> Words:
    """Names and values of `key=value` words. Raises UserError for any other word or key."""
    found = Words()
    for word in words:
        key, sign, value = word.partition("=")
        name = key.removeprefix("model.")
        if not sign or not value:
            raise UserError(f"{word!r} is not key=value; keys: {', '.join(_KEYS)}, model.KEY.")
        if key in _KEYS:
            found.values[key] = value
        elif key == name:
            raise UserError(f"{word} is not known; keys: {', '.join(_KEYS)}, model.KEY.")
        elif name in _MODEL_KEYS:
            found.model[name] = _plain(key, value)
        else:
            raise UserError(f"{word} is not known; keys of a model: {', '.join(_MODEL_KEYS)}.")
    return found


def _plain(key: str, value: str) -> Any:
    """A value as YAML reads it. Raises UserError for an open bracket or quote."""
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"{key}={value} cannot be read; close its brackets and quotes.") from None


def build(words: Words, model: str | None = None) -> PlanConfig:
    """The checked configuration; `model` in place of the word's.

    Raises UserError with one sentence.
    """
    name = model or words.values.get("model")
    if name is None:
        raise UserError(f"Which model? Give model=NAME; names: {', '.join(names('model'))}.")
    shape = from_dict(ModelConfig, load_group("model", name) | words.model, "model.")
    chosen = [
        from_dict(OptimizerConfig, load_group("optimizer", item), "optimizer.")
        for item in words.values.get("optimizer", "gefen,adamw").split(",")
    ]
    for optimizer in chosen:
        optimizers.check(optimizer)
    given = {key: yaml.safe_load(words.values[key]) for key in _SETTINGS if key in words.values}
    config = from_dict(PlanConfig, {"model": shape, "optimizers": chosen, **given})
    config.precision = ALIASES.get(config.precision, config.precision)
    config.seq_len = sequence_length(shape, config.seq_len)
    config.model = for_length(shape, config.seq_len)
    check(config)
    return config


def check(config: PlanConfig) -> None:
    """Refuse values that no training can have. Raises UserError."""
    from harness import models

    for key, allowed in (("precision", PRECISIONS), ("device", DEVICES)):
        value = getattr(config, key)
        if value not in allowed:
            raise UserError(f"{key}={value} is not known; allowed: {', '.join(allowed)}.")
    for key, least in {**_LEAST, "headroom_gib": 0}.items():
        value = getattr(config, key)
        if not least <= value < math.inf:
            raise UserError(f"{key}={value} is not allowed; it must be a number from {least} on.")
    if config.micro_batch * config.seq_len > _MOST_TOKENS:
        raise UserError(
            f"micro_batch={config.micro_batch} x seq_len={config.seq_len} are too many tokens; a "
            f"plan takes at most {_MOST_TOKENS:,}."
        )
    check_model(config.model)
    models.check(config.model)
    if config.model.lora_rank is not None:
        raise UserError(
            f"model.lora_rank={config.model.lora_rank} cannot be planned; set it to null, or "
            "measure it with gefen-bench task=memory."
        )
    longest = models.max_positions(config.model)
    if config.seq_len > longest:
        raise UserError(
            f"seq_len={config.seq_len} is longer than the {longest} positions of model "
            f"{config.model.name}; choose seq_len <= {longest} or set model.max_positions."
        )


def size(text: str) -> int:
    """Bytes of `24GiB`, `80GB`, `512MiB` or a number of GiB. Raises UserError."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(GiB|GB|MiB|MB|TiB|TB)?", text.strip(), re.I)
    units = {"mib": 2**20, "mb": 10**6, "gib": GIB, "gb": 10**9, "tib": 2**40, "tb": 10**12}
    if found is None or not float(found[1]) > 0:
        raise UserError(f"--fits {text} is no size; write 24GiB, 80GB or 512MiB.")
    return int(float(found[1]) * units[(found[2] or "GiB").lower()])


def family_names(family: str) -> list[str]:
    """The models whose names begin with `family` and `_`. Raises UserError where there is none."""
    found = [name for name in names("model") if name.startswith(f"{family}_")]
    if not found:
        known = sorted({name.rpartition("_")[0] for name in names("model")})
        raise UserError(f"family={family} is not known; allowed: {', '.join(known)}.")
    return found
