"""The configuration's dataclasses: every key that a run has, with its meaning and default.

`from_dict` builds them from nested plain values and checks names and types; `to_dict` goes back.
Neither needs Hydra or torch.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from harness.errors import UserError

T = TypeVar("T")
LARGEST = 2**63 - 1  # of whole numbers: files and tensors hold 64 bits


@dataclass
class OptimizerConfig:
    """One optimizer: its registry name, the settings that all share, and its own `options`.

    The peak learning rate is `lr` x `lr_factor`: `lr` is where the optimizer starts from, and a
    sweep over factors gives every optimizer the same grid around its own start.
    """

    name: str = "adamw"  # in harness/optimizers
    variant: str | None = None  # a name in reports for these settings; computes nothing
    lr: float = 1e-3
    lr_factor: float = 1.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = 0.1  # decoupled; of parameters with two dimensions or more
    options: dict[str, Any] = field(default_factory=dict)  # keywords of the implementation


@dataclass
class ModelConfig:
    """A model by its shape, or a pretrained decoder by `path` (see `harness.models.files`).

    `max_positions` bounds `seq_len` where positions are learned; of rotary families it follows
    `seq_len` upwards. LoRA: Hu et al., arXiv 2106.09685 (peft). Activation checkpointing: Chen et
    al., arXiv 1604.06174 (transformers).
    """

    name: str = "gpt2_4m"  # in labels and reports
    family: str = "gpt2"  # in harness/models
    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None  # null: as many as heads
    head_size: int | None = None  # null: hidden_size / heads
    intermediate_size: int | None = None  # of the feed-forward layers; null: the family's own rule
    experts: int | None = None  # of a mixture, each with intermediate_size; null elsewhere
    experts_per_token: int | None = None  # that see a token
    vocab_size: int | None = None  # null: the data's vocabulary or classes
    max_positions: int = 1024
    tie_embeddings: bool = True  # one matrix for the input embedding and the head
    rope_theta: float = 10000.0
    image_size: int | None = None  # pixels a side, of a classifier of images; null elsewhere
    patch_size: int | None = None  # pixels a side
    channels: int | None = None
    activation_checkpointing: bool = False  # keep a layer's input alone, compute the rest again
    path: str | None = None  # a hub id, a folder, or a cell that ran with task.save_model=true
    lora_rank: int | None = None  # train low-rank updates of the linear layers but the head alone
    lora_alpha: float = 16.0  # their scale is lora_alpha / lora_rank


@dataclass
class DataConfig:
    """Where text, pairs or labelled images come from, and how text becomes tokens.

    Text comes from `source` python_source (files of installed wheels), text_files (`path`: a folder
    or a file) or hub (`path`: a Hugging Face dataset id or a local dataset folder). With `path` set
    to a prepared corpus folder (it holds a meta.json) that corpus is used as it is.

    Pairs for task=finetune come from docstrings (functions of the wheels that the splits name) or
    instructions (`path` and `subset` as for hub).

    Labelled images come from digits (scikit-learn's), image_folder (`path`: a folder with a folder
    for each class) or hub_images (`path` as for hub), cropped and scaled to `image_size` and
    `channels`. With `folds` (3 or more) fold number `fold` is the test split and the next one
    validation, drawn anew for each data seed; null takes the source's own splits, or 5 % each of
    its training images.
    """

    name: str = "python_source"  # in labels and reports
    source: str = "python_source"  # in harness/data
    path: str | None = None
    subset: str | None = None  # of a hub data set
    text_column: str = "text"
    max_documents: int | None = None  # read no more
    tokenizer: str = "bpe"  # trained on the training split; bytes; model (of model.path); a hub id
    vocab_size: int = 4096  # of bpe
    train: list[str] = field(default_factory=list)  # wheels of each split
    validation: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)  # globs of files that are left out
    max_package_bytes: int | None = None  # what one wheel gives at most
    prompt_template: str = "{prompt}"  # with columns in braces filled in
    completion_column: str = "completion"
    image_column: str = "image"
    label_column: str = "label"
    image_size: int | None = None  # pixels a side
    channels: int | None = None
    folds: int | None = None
    fold: int = 0
    copies: str = "drop"  # of held-out text in training; or refuse


@dataclass
class TaskConfig:
    """What a cell does: `pretrain` trains on text, `finetune` on the completions of pairs,
    `classify` on labelled images (the loss is in nats an image); `memory` counts bytes and times
    optimizer steps.

    The learning rate warms up linearly over `warmup_steps`, then follows a cosine down to
    `min_lr_ratio` x peak at `steps`. A smaller machine is imitated by `memory_cap_gib`: CUDA, what
    the process may reserve; CPU, what it may add to itself after its imports.
    """

    kind: str = "pretrain"  # in harness/tasks
    steps: int = 300  # optimizer steps
    warmup_steps: int = 30
    min_lr_ratio: float = 0.1
    grad_clip: float = 1.0  # largest norm of all gradients together
    gradient_noise: float = 0.0  # g + this x rms(g) x N(0, 1) for every tensor, before clipping
    eval_every_steps: int = 50
    eval_tokens: int = 65536  # that each evaluation reads
    final_eval_tokens: int | None = None  # of the last one, for verdicts; null: as many
    eval_split: str = "validation"  # or test
    log_every_steps: int = 10
    checkpoint_every_steps: int = 100  # to resume from; 0 for none
    target_loss: float | None = None  # note the tokens and seconds until it is reached
    spike_window: int = 50  # steps of the rolling median
    spike_mads: float = 8.0  # deviations above it that make a spike
    divergence_window: int = 50  # steps above the start that make a divergence
    warmup_optimizer_steps: int = 10  # memory: before the timed ones
    timed_optimizer_steps: int = 20
    memory_cap_gib: float | None = None  # a run that needs more ends as oom; null for no cap
    exact_peaks: bool = False  # CPU, glibc: peaks of living tensors, no holes of the heap; slower
    save_model: bool = False  # leave the final weights in the cell's folder, for model.path
    generate_samples: int = 8  # finetune: prompts completed greedily, before and after
    generate_tokens: int = 64  # at most; prompts whose completion is longer are not chosen


@dataclass
class TrackerConfig:
    """The dashboard that mirrors the store."""

    name: str = "wandb"  # in harness/trackers, or none
    mode: str = "offline"  # or online (wandb)
    project: str = "gefen-bench"
    entity: str | None = None  # team or user; null: that of the key


@dataclass
class LaunchConfig:
    """How cells are started. Only what runs one cell on several processes changes a result.

    `nproc` processes of one machine, each on its own device, run a cell together. An optimizer step
    then reads nproc x micro_batch x grad_accumulation sequences: those of one process with nproc x
    micro_batch.
    """

    nproc: int = 1
    strategy: str | None = None  # ddp (all hold everything) or fsdp (FSDP2); null: ddp
    resume_from: str | None = None  # folder of an unfinished cell of the same run on other ranks
    timeout_seconds: float = 7200.0  # of a cell
    dry_run: bool = False
    limit: int | None = None  # cells that a command runs at most
    time_budget_minutes: float | None = None  # after which a command starts no further cell
    keep_running: bool = False  # SLURM jobs go on when the command is ended
    rerun: list[str] = field(default_factory=list)  # statuses, or ids, whose results run again


@dataclass
class StudyConfig:
    """A named set of cells; `harness.study.parts.searches` says what a part may have."""

    name: str = "adhoc"  # folder below root
    title: str = ""
    description: str = ""
    demonstration: bool = False  # shows that everything works, not what is learned
    claims: list[str] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)


@dataclass
class RunConfig:
    """Everything a cell needs. `seed` sets `model_seed` and `data_seed` unless they are given."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    precision: str = "fp32"  # bf16_mixed: autocast over fp32 weights; bf16_pure: all in bf16
    seq_len: int = 256  # tokens a sequence
    micro_batch: int = 4  # sequences a forward pass
    grad_accumulation: int = 1  # forward passes an optimizer step
    seed: int = 0
    model_seed: int | None = None  # initial weights
    data_seed: int | None = None  # order of the data, folds
    device: str = "auto"  # cuda where torch sees one, else cpu
    threads: int | None = None  # of the CPU; null: torch's own choice
    part: str = "main"  # of the study
    root: str = "runs"  # folder of the studies
    cache: str | None = None  # of prepared data; null: GEFEN_BENCH_CACHE or ~/.cache/gefen-bench
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    study: StudyConfig = field(default_factory=StudyConfig)


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
        if hint is int and abs(value) > LARGEST:
            raise UserError(f"{key}={value} is too large; the largest allowed is {LARGEST}.")
        return value
    raise UserError(f"{key}={value!r} is not of type {type_name(hint)}.")


def type_name(hint: Any) -> str:
    """A type as sentences name it."""
    return str(hint if typing.get_args(hint) else getattr(hint, "__name__", hint))


def key_types(cls: Any = RunConfig, prefix: str = "") -> dict[str, Any]:
    """The type of every key of a configuration, by its dotted name."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(cls).items():
        found[prefix + name] = hint
        if dataclasses.is_dataclass(hint):
            found |= key_types(hint, f"{prefix}{name}.")
    return found


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values of a configuration dataclass."""
    return dataclasses.asdict(config)
