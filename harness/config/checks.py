"""The values that a configuration may have, as far as they show without data, model or torch.

`validate` is the door: it raises a UserError whose one sentence names the key, the value and what
is allowed. What needs the optimizer's, the model's or the source's own file is checked there.
"""

import math
import threading
from collections.abc import Iterable
from typing import Any

from harness import registry
from harness.config.types import (
    DataConfig,
    LaunchConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TaskConfig,
)
from harness.errors import UserError

PRECISIONS = ("fp32", "bf16_mixed", "bf16_pure")
DEVICES = ("auto", "cpu", "cuda")
STRATEGIES = ("ddp", "fsdp")

# Files of their folders: what is added there is allowed here.
TASKS = registry.names("tasks")
SOURCES = registry.names("data/sources")
TRACKERS = registry.names("trackers")
FAMILIES = registry.names("models/families")
ROTARY_FAMILIES = tuple(f for f in FAMILIES if registry.constant("models/families", f, "ROTARY"))
IMAGE_FAMILIES = tuple(
    f for f in FAMILIES if registry.constant("models/families", f, "INPUTS") == "images"
)

LEAST_FOLDS = 3
BYTE_TOKENS = 257  # 256 bytes and the end of a text
SEEDS = 2**32  # numpy takes no larger one
MOST_THREADS = 1024
LONGEST_NAME = 200  # bytes; file systems allow 255


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
        ("data.copies", config.data.copies, ("drop", "refuse")),
        ("device", config.device, DEVICES),
        ("tracker.name", config.tracker.name, TRACKERS),
        ("tracker.mode", config.tracker.mode, ("offline", "online")),
    ):
        _one_of(key, value, allowed)
    _check_study_name(config.study.name)
    _check_kinds(config)
    _check_run(config)
    check_model(config.model)
    _check_data(config)
    _check_optimizer(config.optimizer)
    _check_task(config.task)
    _check_launch(config.launch)
    if config.launch.nproc > 1 and config.launch.strategy == "fsdp":
        _check_fsdp(config)


def reads_images(model: ModelConfig) -> bool:
    """Whether a model classifies images instead of predicting tokens."""
    return model.family in IMAGE_FAMILIES


def _one_of(key: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise UserError(f"{key}={value} is not known; allowed: {', '.join(allowed)}.")


def _at_least(owner: Any, prefix: str, minimum: int, *keys: str) -> None:
    for key in keys:
        value = getattr(owner, key)
        if value is not None and value < minimum:
            raise UserError(f"{prefix}{key}={value} is too small; the least allowed is {minimum}.")


def _above_zero(owner: Any, prefix: str, *keys: str) -> None:
    for key in keys:
        value = getattr(owner, key)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UserError(
                f"{prefix}{key}={value} is not allowed; it must be a finite number above 0."
            )


def _not_negative(owner: Any, prefix: str, *keys: str) -> None:
    for key in keys:
        value = getattr(owner, key)
        if not (value >= 0 and math.isfinite(value)):
            raise UserError(
                f"{prefix}{key}={value} is not allowed; it must be a finite number, 0 or above."
            )


def _check_study_name(name: str) -> None:
    """A study is one folder below root: the name may not lead elsewhere."""
    plain = name.strip() == name and name.isprintable() and not set(name) & {"/", "\\"}
    if not plain or name in ("", ".", "..") or len(name.encode(errors="replace")) > LONGEST_NAME:
        raise UserError(
            f"study.name={name[:60]!r} is not allowed; it must be the name of one folder below "
            f"root, of at most {LONGEST_NAME} bytes, without slashes."
        )


def _check_kinds(config: RunConfig) -> None:
    """Text goes with decoders, labelled images with classifiers, and a task names what it takes."""
    model, kind, source = config.model, config.task.kind, config.data.source
    held = _held(config.data)
    images = held == "images"
    if images != reads_images(model):
        fitting = "model=vit_digits" if images else "data=digits"
        raise UserError(
            f"model.family={model.family} cannot read data.source={source}, which holds {held}; "
            f"choose for example {fitting}."
        )
    if held not in _tasks_data(kind):
        fitting = " or ".join(f"task={t}" for t in TASKS if held in _tasks_data(t))
        raise UserError(
            f"task.kind={kind} does not go with data.source={source}, which holds {held}; choose "
            f"{fitting}, or data that holds {' or '.join(_tasks_data(kind))}."
        )
    # A study that says it is one may: its runs show that everything works, not what is learned.
    if kind == "finetune" and model.path is None and not config.study.demonstration:
        raise UserError(
            f"model.path=null of model {model.name} leaves task.kind=finetune nothing to "
            "start from; give a hub id, a local folder, a cell that ran with task.save_model=true, "
            "or choose model=smollm2_135m."
        )
    saving = [task for task in TASKS if "save_model" in registry.constant("tasks", task, "READS")]
    if config.task.save_model and kind not in saving:
        raise UserError(
            f"task.save_model=true does not go with task.kind={kind}; allowed: {', '.join(saving)}."
        )


def _held(data: DataConfig) -> str:
    """What a source holds: texts, pairs or images."""
    return str(registry.constant("data/sources", data.source, "KIND"))


def _tasks_data(kind: str) -> tuple[str, ...]:
    """What a task takes of texts, pairs and images."""
    return tuple(registry.constant("tasks", kind, "DATA"))


def _check_run(config: RunConfig) -> None:
    _at_least(config, "", 1, "micro_batch", "grad_accumulation", "threads")
    _at_least(config, "", 2, "seq_len")
    if (config.threads or 1) > MOST_THREADS:  # far beyond, a library of threads crashes
        raise UserError(
            f"threads={config.threads} is too large; the largest allowed is {MOST_THREADS}."
        )
    for key in ("seed", "model_seed", "data_seed"):
        _at_least(config, "", 0, key)
        if (getattr(config, key) or 0) >= SEEDS:
            raise UserError(
                f"{key}={getattr(config, key)} is too large; the largest allowed is {SEEDS - 1}."
            )
    model, task = config.model, config.task
    if task.eval_tokens < config.seq_len:
        raise UserError(
            f"task.eval_tokens={task.eval_tokens} is less than one sequence; choose at "
            f"least seq_len={config.seq_len}."
        )
    learned = model.family not in (*ROTARY_FAMILIES, *IMAGE_FAMILIES)
    if learned and model.path is None and config.seq_len > model.max_positions:
        raise UserError(
            f"seq_len={config.seq_len} is longer than the {model.max_positions} positions "
            f"of model {model.name}; choose seq_len <= {model.max_positions} or "
            "another model."
        )


def check_model(model: ModelConfig) -> None:
    """Sizes of a model, whatever its family. Raises UserError."""
    _at_least(model, "model.", 1, "hidden_size", "layers", "heads", "max_positions", "vocab_size")
    _at_least(model, "model.", 1, "kv_heads", "head_size", "intermediate_size")
    _above_zero(model, "model.", "lora_alpha", "rope_theta")
    rank = model.lora_rank
    if rank is not None and rank < 1:
        raise UserError(f"model.lora_rank={rank} is too small; the least allowed is 1, or null.")


def _check_data(config: RunConfig) -> None:
    data, model = config.data, config.model
    _at_least(data, "data.", 1, "max_documents", "max_package_bytes")
    if _held(data) == "images":
        _check_image_sizes(model, data)
        _check_folds(data)
    elif model.vocab_size is not None:
        _check_vocabulary(model.name, model.vocab_size, data)


def _check_vocabulary(model: str, size: int, data: DataConfig) -> None:
    """The ids of the tokenizer must be rows of the model's embedding."""
    if data.tokenizer == "bpe" and data.vocab_size > size:
        raise UserError(
            f"data.vocab_size={data.vocab_size} is larger than the vocabulary of model "
            f"{model}; choose data.vocab_size <= {size}."
        )
    if data.tokenizer == "bytes" and size < BYTE_TOKENS:
        raise UserError(
            f"model.vocab_size={size} is too small for data.tokenizer=bytes; choose at least "
            f"{BYTE_TOKENS}, or null."
        )


def _check_image_sizes(model: ModelConfig, data: DataConfig) -> None:
    for key in ("image_size", "channels"):
        if getattr(data, key) != getattr(model, key):
            raise UserError(
                f"data.{key}={getattr(data, key)} is not the model.{key}={getattr(model, key)} of "
                f"model {model.name}; set both to the same number."
            )


def _check_folds(data: DataConfig) -> None:
    if data.folds is None:
        if data.fold:
            raise UserError(f"data.fold={data.fold} needs data.folds, the number of folds.")
        return
    if data.folds < LEAST_FOLDS:
        raise UserError(
            f"data.folds={data.folds} is too small; training, validation and test take "
            f"{LEAST_FOLDS}."
        )
    if not 0 <= data.fold < data.folds:
        raise UserError(f"data.fold={data.fold} must lie between 0 and {data.folds - 1}.")


def _check_optimizer(optimizer: OptimizerConfig) -> None:
    _above_zero(optimizer, "optimizer.", "lr", "lr_factor")
    _not_negative(optimizer, "optimizer.", "weight_decay", "eps")
    rate = optimizer.lr * optimizer.lr_factor
    if not (rate > 0 and math.isfinite(rate)):
        raise UserError(
            f"optimizer.lr={optimizer.lr} times optimizer.lr_factor={optimizer.lr_factor} is "
            f"{rate}; their product must be a finite number above 0."
        )
    for beta in optimizer.betas:
        if not 0 <= beta < 1:
            raise UserError(f"optimizer.betas={optimizer.betas} must each lie in [0, 1).")


def _check_task(task: TaskConfig) -> None:
    positive = ("steps", "eval_every_steps", "eval_tokens", "log_every_steps", "generate_tokens")
    _at_least(task, "task.", 1, *positive)
    _at_least(task, "task.", 1, "timed_optimizer_steps", "spike_window", "divergence_window")
    _at_least(task, "task.", 0, "warmup_steps", "checkpoint_every_steps", "warmup_optimizer_steps")
    _at_least(task, "task.", 0, "generate_samples")
    _above_zero(task, "task.", "grad_clip", "spike_mads", "memory_cap_gib", "target_loss")
    _not_negative(task, "task.", "gradient_noise")
    final = task.final_eval_tokens
    if final is not None and final < task.eval_tokens:
        raise UserError(
            f"task.final_eval_tokens={final} is less than task.eval_tokens="
            f"{task.eval_tokens}, which every evaluation reads; choose at least as many."
        )
    if task.warmup_steps >= task.steps:
        raise UserError(
            f"task.warmup_steps={task.warmup_steps} leaves nothing of task.steps={task.steps}; "
            "choose fewer warm-up steps."
        )
    if not 0 <= task.min_lr_ratio <= 1:
        raise UserError(f"task.min_lr_ratio={task.min_lr_ratio} must lie in [0, 1].")


def _check_launch(launch: LaunchConfig) -> None:
    _at_least(launch, "launch.", 1, "nproc", "limit")
    if launch.strategy is not None:
        _one_of("launch.strategy", launch.strategy, STRATEGIES)
    if launch.strategy == "fsdp" and launch.nproc == 1:
        raise UserError("launch.strategy=fsdp with launch.nproc=1 cuts nothing; choose nproc >= 2.")
    _above_zero(launch, "launch.", "timeout_seconds", "time_budget_minutes")
    if launch.timeout_seconds > threading.TIMEOUT_MAX:
        raise UserError(
            f"launch.timeout_seconds={launch.timeout_seconds:g} is too large; the largest allowed "
            f"is {threading.TIMEOUT_MAX:.0f}."
        )


def _check_fsdp(config: RunConfig) -> None:
    """What needs whole weights or gradients on one rank."""
    for key, used in (
        ("task.kind=finetune", config.task.kind == "finetune"),
        ("task.save_model=true", config.task.save_model),
        ("task.gradient_noise", config.task.gradient_noise > 0),
        ("model.lora_rank", config.model.lora_rank is not None),
    ):
        if used:
            raise UserError(f"{key} does not work with launch.strategy=fsdp; choose ddp.")
