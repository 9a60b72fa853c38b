"""Typed configuration: what a run is, checked before anything heavy is imported.

These dataclasses need neither Hydra nor torch, so that a machine without Hydra can build the same
configuration from plain dictionaries (`from_dict`). Hydra sees them through `harness.app`.
"""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from harness.errors import UserError

PRECISIONS = ("fp32", "bf16_mixed", "bf16_pure")
TASKS = ("pretrain", "memory")
FAMILIES = ("gpt2", "llama")
SOURCES = ("python_source", "text_files", "hub")
DEVICES = ("auto", "cpu", "cuda")
TRACKERS = ("none", "wandb")


@dataclass
class OptimizerConfig:
    """One optimizer: the registry name, the common settings, and its own `options`.

    The peak learning rate is `lr` x `lr_factor`: `lr` is where the optimizer starts from, and a
    sweep over factors gives every optimizer the same grid around its own start. `options` are
    keyword arguments of the implementation.
    `variant` is the name under which reports list the run apart from other runs of this optimizer;
    it does not change what is computed.
    """

    name: str = "adamw"
    variant: str | None = None
    lr: float = 1e-3
    lr_factor: float = 1.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = 0.1
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelConfig:
    """A decoder by its shape, or a pretrained one by `path` (hub id or local folder).

    `vocab_size` null takes the data's vocabulary; `kv_heads` null equals `heads`;
    `intermediate_size` null is 4 x hidden (GPT-2) or the family's own rule.
    """

    name: str = "gpt2_4m"
    family: str = "gpt2"
    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None
    head_size: int | None = None
    intermediate_size: int | None = None
    vocab_size: int | None = None
    max_positions: int = 1024
    tie_embeddings: bool = True
    rope_theta: float = 10000.0
    path: str | None = None


@dataclass
class DataConfig:
    """Where text comes from and how it becomes tokens.

    `source` is python_source (files of installed wheels), text_files (`path`: a folder or a file)
    or hub (`path`: a Hugging Face dataset id or a local dataset folder, `subset`, `text_column`).
    `tokenizer` is bpe (trained on the training split), bytes, or a hub id / local folder.
    `train`, `validation`, `test` name the wheels of each split; files matching a glob of `exclude`
    are left out; `max_package_bytes` bounds what one wheel gives. With `path` set to a prepared
    corpus folder (it holds a meta.json) that corpus is used as it is.
    """

    name: str = "python_source"
    source: str = "python_source"
    path: str | None = None
    subset: str | None = None
    text_column: str = "text"
    max_documents: int | None = None
    tokenizer: str = "bpe"
    vocab_size: int = 4096
    train: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    max_package_bytes: int | None = None


@dataclass
class TaskConfig:
    """What a cell does: `pretrain` trains; `memory` counts bytes and times optimizer steps.

    The learning rate warms up linearly over `warmup_steps`, then follows a cosine down to
    `min_lr_ratio` x peak at `steps`. Evaluation reads `eval_tokens` tokens of `eval_split`.
    """

    kind: str = "pretrain"
    steps: int = 300
    warmup_steps: int = 30
    min_lr_ratio: float = 0.1
    grad_clip: float = 1.0
    eval_every_steps: int = 50
    eval_tokens: int = 65536
    eval_split: str = "validation"
    log_every_steps: int = 10
    checkpoint_every_steps: int = 100
    target_loss: float | None = None
    spike_window: int = 50
    spike_mads: float = 8.0
    divergence_window: int = 50
    warmup_optimizer_steps: int = 10
    timed_optimizer_steps: int = 20


@dataclass
class TrackerConfig:
    """The mirror of the store: `name` none or wandb; `mode` offline or online."""

    name: str = "wandb"
    mode: str = "offline"
    project: str = "gefen-bench"
    entity: str | None = None


@dataclass
class LaunchConfig:
    """How cells are started; none of it changes a result."""

    timeout_seconds: float = 7200.0
    dry_run: bool = False


@dataclass
class StudyConfig:
    """A named set of cells: each part has fixed `overrides` and a `sweep` over lists of values."""

    name: str = "adhoc"
    title: str = ""
    description: str = ""
    demonstration: bool = False
    claims: list[str] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)


@dataclass
class RunConfig:
    """Everything a cell needs. `seed` sets `model_seed` and `data_seed` unless they are given."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    precision: str = "fp32"
    seq_len: int = 256
    micro_batch: int = 4
    grad_accumulation: int = 1
    seed: int = 0
    model_seed: int | None = None
    data_seed: int | None = None
    device: str = "auto"
    threads: int | None = None
    part: str = "main"
    root: str = "runs"
    cache: str | None = None
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    study: StudyConfig = field(default_factory=StudyConfig)


T = TypeVar("T")


def from_dict(cls: type[T], values: dict[str, Any], prefix: str = "") -> T:
    """Build dataclass `cls` from nested plain values, checking names and types.

    Raises UserError that names the key, the value and what is allowed.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(
            f"Unknown key '{prefix}{unknown[0]}'; allowed here: {', '.join(sorted(hints))}."
        )
    built = {key: _convert(hints[key], value, prefix + key) for key, value in values.items()}
    return cls(**built)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """`value` as type `hint`; ints pass where floats are asked for."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, dict):
            return from_dict(hint, value, f"{key}.")
    elif isinstance(hint, types.UnionType):
        if value is None:
            return None
        return _convert(typing.get_args(hint)[0], value, key)
    elif hint is Any:
        return value
    elif typing.get_origin(hint) is list:
        if isinstance(value, list | tuple):
            return [_convert(typing.get_args(hint)[0], item, key) for item in value]
    elif typing.get_origin(hint) is dict:
        if isinstance(value, dict):
            return dict(value)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    wanted = getattr(hint, "__name__", str(hint))
    raise UserError(f"{key}={value!r} is not of type {wanted}.")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values of a configuration dataclass."""
    return dataclasses.asdict(config)


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{key}={value} is not known; allowed: {', '.join(allowed)}.")


def _at_least(key: str, value: float, minimum: float) -> None:
    if not value >= minimum:
        raise UserError(f"{key}={value} is too small; the least allowed is {minimum}.")


def _above_zero(key: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise UserError(f"{key}={value} is not allowed; it must be a finite number above 0.")


def validate(config: RunConfig) -> None:
    """Check every value that can be checked without loading data, model or torch.

    Raises UserError with one sentence.
    """
    for key, value, allowed in (
        ("precision", config.precision, PRECISIONS),
        ("task.kind", config.task.kind, TASKS),
        ("task.eval_split", config.task.eval_split, ("validation", "test")),
        ("model.family", config.model.family, FAMILIES),
        ("data.source", config.data.source, SOURCES),
        ("device", config.device, DEVICES),
        ("tracker.name", config.tracker.name, TRACKERS),
        ("tracker.mode", config.tracker.mode, ("offline", "online")),
    ):
        _one_of(key, value, allowed)
    _validate_sizes(config)
    _validate_optimizer(config.optimizer)
    _validate_schedule(config.task)


def _validate_sizes(config: RunConfig) -> None:
    for key in ("micro_batch", "grad_accumulation"):
        _at_least(key, getattr(config, key), 1)
    _at_least("seq_len", config.seq_len, 2)
    if config.task.eval_tokens < config.seq_len:
        raise UserError(
            f"task.eval_tokens={config.task.eval_tokens} is less than one sequence; choose at "
            f"least seq_len={config.seq_len}."
        )
    for key in ("seed", "model_seed", "data_seed"):
        _at_least(key, getattr(config, key) or 0, 0)
    if config.threads is not None:
        _at_least("threads", config.threads, 1)
    for key in ("hidden_size", "layers", "heads", "max_positions"):
        _at_least(f"model.{key}", getattr(config.model, key), 1)
    if config.model.path is None and config.seq_len > config.model.max_positions:
        raise UserError(
            f"seq_len={config.seq_len} is longer than the {config.model.max_positions} positions "
            f"of model {config.model.name}; choose seq_len <= {config.model.max_positions} or "
            "another model."
        )
    vocab_size = config.model.vocab_size
    if vocab_size is not None and config.data.tokenizer == "bpe":
        if config.data.vocab_size > vocab_size:
            raise UserError(
                f"data.vocab_size={config.data.vocab_size} is larger than the vocabulary of model "
                f"{config.model.name}; choose data.vocab_size <= {vocab_size}."
            )
    _above_zero("launch.timeout_seconds", config.launch.timeout_seconds)


def _validate_optimizer(optimizer: OptimizerConfig) -> None:
    _above_zero("optimizer.lr", optimizer.lr)
    _above_zero("optimizer.lr_factor", optimizer.lr_factor)
    _at_least("optimizer.weight_decay", optimizer.weight_decay, 0)
    _at_least("optimizer.eps", optimizer.eps, 0)
    for beta in optimizer.betas:
        if not 0 <= beta < 1:
            raise UserError(f"optimizer.betas={optimizer.betas} must each lie in [0, 1).")


def _validate_schedule(task: TaskConfig) -> None:
    for key in ("steps", "eval_every_steps", "eval_tokens", "log_every_steps"):
        _at_least(f"task.{key}", getattr(task, key), 1)
    for key in ("warmup_steps", "checkpoint_every_steps", "warmup_optimizer_steps"):
        _at_least(f"task.{key}", getattr(task, key), 0)
    for key in ("timed_optimizer_steps", "spike_window", "divergence_window"):
        _at_least(f"task.{key}", getattr(task, key), 1)
    for key in ("grad_clip", "spike_mads"):
        _above_zero(f"task.{key}", getattr(task, key))
    if task.warmup_steps >= task.steps:
        raise UserError(
            f"task.warmup_steps={task.warmup_steps} leaves nothing of task.steps={task.steps}; "
            "choose fewer warm-up steps."
        )
    if not 0 <= task.min_lr_ratio <= 1:
        raise UserError(f"task.min_lr_ratio={task.min_lr_ratio} must lie in [0, 1].")
