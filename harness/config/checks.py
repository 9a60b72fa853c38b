"""The values that a configuration may have, as far as they show without data, model or torch."""

import math

from harness.config.checks_finetuning import PAIR_SOURCES, validate_finetuning
from harness.config.checks_images import IMAGE_FAMILIES, IMAGE_SOURCES, validate_images
from harness.config.types import LaunchConfig, OptimizerConfig, RunConfig, TaskConfig
from harness.errors import UserError

PRECISIONS = ("fp32", "bf16_mixed", "bf16_pure")
TASKS = ("pretrain", "finetune", "classify", "memory")
ROTARY_FAMILIES = ("llama", "mixtral", "qwen3")
FAMILIES = ("gpt2", *ROTARY_FAMILIES, *IMAGE_FAMILIES)
SOURCES = ("python_source", "text_files", "hub", *PAIR_SOURCES, *IMAGE_SOURCES)
DEVICES = ("auto", "cpu", "cuda")
STRATEGIES = ("ddp", "fsdp")
TRACKERS = ("none", "wandb", "trackio")


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
    validate_images(config)
    _validate_sizes(config)
    validate_finetuning(config)
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
    final = config.task.final_eval_tokens
    if final is not None and final < config.task.eval_tokens:
        raise UserError(
            f"task.final_eval_tokens={final} is less than task.eval_tokens="
            f"{config.task.eval_tokens}, which every evaluation reads; choose at least as many."
        )
    for key in ("seed", "model_seed", "data_seed"):
        _at_least(key, getattr(config, key) or 0, 0)
    if config.threads is not None:
        _at_least("threads", config.threads, 1)
    for key in ("hidden_size", "layers", "heads", "max_positions"):
        _at_least(f"model.{key}", getattr(config.model, key), 1)
    learned = config.model.family not in (*ROTARY_FAMILIES, *IMAGE_FAMILIES)
    if learned and config.model.path is None and config.seq_len > config.model.max_positions:
        raise UserError(
            f"seq_len={config.seq_len} is longer than the {config.model.max_positions} positions "
            f"of model {config.model.name}; choose seq_len <= {config.model.max_positions} or "
            "another model."
        )
    vocab_size = config.model.vocab_size
    texts = config.data.source not in IMAGE_SOURCES
    if texts and vocab_size is not None and config.data.tokenizer == "bpe":
        if config.data.vocab_size > vocab_size:
            raise UserError(
                f"data.vocab_size={config.data.vocab_size} is larger than the vocabulary of model "
                f"{config.model.name}; choose data.vocab_size <= {vocab_size}."
            )
    _validate_launch(config.launch)
    if config.launch.nproc > 1 and config.launch.strategy == "fsdp":
        _validate_fsdp(config)


def _validate_launch(launch: LaunchConfig) -> None:
    _at_least("launch.nproc", launch.nproc, 1)
    if launch.strategy is not None:
        _one_of("launch.strategy", launch.strategy, STRATEGIES)
    if launch.strategy == "fsdp" and launch.nproc == 1:
        raise UserError("launch.strategy=fsdp with launch.nproc=1 cuts nothing; choose nproc >= 2.")
    _above_zero("launch.timeout_seconds", launch.timeout_seconds)
    if launch.limit is not None:
        _at_least("launch.limit", launch.limit, 1)
    if launch.time_budget_minutes is not None:
        _above_zero("launch.time_budget_minutes", launch.time_budget_minutes)


def _validate_fsdp(config: RunConfig) -> None:
    """What needs whole weights or gradients on one rank."""
    for key, used in (
        ("task.kind=finetune", config.task.kind == "finetune"),
        ("task.save_model=true", config.task.save_model),
        ("task.gradient_noise", config.task.gradient_noise > 0),
        ("model.lora_rank", config.model.lora_rank is not None),
    ):
        if used:
            raise UserError(f"{key} does not work with launch.strategy=fsdp; choose ddp.")


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
    if not (task.gradient_noise >= 0 and math.isfinite(task.gradient_noise)):
        raise UserError(
            f"task.gradient_noise={task.gradient_noise} is not allowed; it must be a finite "
            "number, 0 or above."
        )
    if task.memory_cap_gib is not None:
        _above_zero("task.memory_cap_gib", task.memory_cap_gib)
    if task.warmup_steps >= task.steps:
        raise UserError(
            f"task.warmup_steps={task.warmup_steps} leaves nothing of task.steps={task.steps}; "
            "choose fewer warm-up steps."
        )
    if not 0 <= task.min_lr_ratio <= 1:
        raise UserError(f"task.min_lr_ratio={task.min_lr_ratio} must lie in [0, 1].")
