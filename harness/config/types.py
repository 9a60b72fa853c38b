"""The configuration's dataclasses: every key that a run has, with its meaning and default."""

from dataclasses import dataclass, field
from typing import Any


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
    """A model by its shape, or a pretrained decoder by `path` (see `harness.models.files`).

    `vocab_size` null takes the data's vocabulary or classes; `kv_heads` null equals `heads`;
    `intermediate_size` null is 4 x hidden (GPT-2) or the family's own rule. `experts` of a mixture
    have `intermediate_size` each, and `experts_per_token` of them see a token; null elsewhere.
    `max_positions` bounds `seq_len` where positions are learned; of rotary families it follows
    `seq_len` upwards. A classifier of images reads `channels` x `image_size` x `image_size` pixels
    in patches of `patch_size` x `patch_size`; null elsewhere.
    With `activation_checkpointing` each layer keeps its input alone and is computed again in the
    backward pass (Chen et al., arXiv 1604.06174; the implementation is that of transformers).
    With `lora_rank` every linear layer but the head gets a low-rank update of that rank, scaled by
    `lora_alpha` / `lora_rank`, and nothing else is trained (Hu et al., arXiv 2106.09685; peft).
    """

    name: str = "gpt2_4m"
    family: str = "gpt2"
    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None
    head_size: int | None = None
    intermediate_size: int | None = None
    experts: int | None = None
    experts_per_token: int | None = None
    vocab_size: int | None = None
    max_positions: int = 1024
    tie_embeddings: bool = True
    rope_theta: float = 10000.0
    image_size: int | None = None
    patch_size: int | None = None
    channels: int | None = None
    activation_checkpointing: bool = False
    path: str | None = None
    lora_rank: int | None = None
    lora_alpha: float = 16.0


@dataclass
class DataConfig:
    """Where text comes from and how it becomes tokens.

    `source` is python_source (files of installed wheels), text_files (`path`: a folder or a file)
    or hub (`path`: a Hugging Face dataset id or a local dataset folder, `subset`, `text_column`).
    `tokenizer` is bpe (trained on the training split), bytes, or a hub id / local folder.
    `train`, `validation`, `test` name the wheels of each split; files matching a glob of `exclude`
    are left out; `max_package_bytes` bounds what one wheel gives. With `path` set to a prepared
    corpus folder (it holds a meta.json) that corpus is used as it is.

    Pairs for task=finetune come from `source` docstrings (functions of the wheels that the splits
    name) or instructions (`path` and `subset` as for hub): the prompt is `prompt_template` with
    columns in braces filled in, the completion `completion_column`. `tokenizer` model is that of
    `model.path`, bpe where there is none.

    Labelled images come from `source` digits (scikit-learn's), image_folder (`path`: a folder with
    a folder for each class) or hub_images (`path` as for hub, `image_column`, `label_column`),
    cropped and scaled to `image_size` and `channels`. With `folds` (3 or more) fold number `fold`
    (from 0) is the test split and the next one validation, drawn anew for each data seed; null
    takes the source's own splits, or 5 % each of its training images.
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
    prompt_template: str = "{prompt}"
    completion_column: str = "completion"
    image_column: str = "image"
    label_column: str = "label"
    image_size: int | None = None
    channels: int | None = None
    folds: int | None = None
    fold: int = 0


@dataclass
class TaskConfig:
    """What a cell does: `pretrain` trains on text, `finetune` on the completions of pairs,
    `classify` on labelled images (the loss is in nats an image); `memory` counts bytes and times
    optimizer steps.

    The learning rate warms up linearly over `warmup_steps`, then follows a cosine down to
    `min_lr_ratio` x peak at `steps`. Evaluation reads `eval_tokens` tokens of `eval_split`,
    the last one of a run, which verdicts rest on, `final_eval_tokens` (null: as many).
    `gradient_noise` adds noise to every gradient before it is clipped: g + gradient_noise x rms(g)
    x N(0, 1), tensor by tensor, the same draws for equal data seeds; 0 for none.
    `memory_cap_gib` imitates a smaller machine: a run that needs more GiB ends as oom (CUDA: what
    the process may reserve; CPU: what it may add to itself after its imports); null for no cap.
    `exact_peaks` (CPU, glibc) maps every block of 64 KiB or more by itself and gives it back when
    it is freed: peaks are then those of living tensors, without the holes of the heap; slower.
    `save_model` leaves the final weights in the cell's folder, for `model.path` of other runs.
    Fine-tuning completes `generate_samples` held-out prompts greedily, before and after, with at
    most `generate_tokens` tokens; prompts whose completion is longer are not chosen.
    """

    kind: str = "pretrain"
    steps: int = 300
    warmup_steps: int = 30
    min_lr_ratio: float = 0.1
    grad_clip: float = 1.0
    gradient_noise: float = 0.0
    eval_every_steps: int = 50
    eval_tokens: int = 65536
    final_eval_tokens: int | None = None
    eval_split: str = "validation"
    log_every_steps: int = 10
    checkpoint_every_steps: int = 100
    target_loss: float | None = None
    spike_window: int = 50
    spike_mads: float = 8.0
    divergence_window: int = 50
    warmup_optimizer_steps: int = 10
    timed_optimizer_steps: int = 20
    memory_cap_gib: float | None = None
    exact_peaks: bool = False
    save_model: bool = False
    generate_samples: int = 8
    generate_tokens: int = 64


@dataclass
class TrackerConfig:
    """The mirror of the store: `name` none, wandb or trackio; `mode` offline or online (wandb)."""

    name: str = "wandb"
    mode: str = "offline"
    project: str = "gefen-bench"
    entity: str | None = None


@dataclass
class LaunchConfig:
    """How cells are started. Only what runs one cell on several processes changes a result.

    `nproc` processes of one machine, each on its own device, run a cell together; `strategy` is
    ddp (every one holds all weights and state) or fsdp (each holds a part; FSDP2), null for ddp.
    An optimizer step then reads nproc x micro_batch x grad_accumulation sequences: those of one
    process with nproc x micro_batch. `resume_from` is the folder of an unfinished cell that
    computes the same on other processes, whose checkpoint is continued.

    `limit` is the number of cells that a command runs at most, `time_budget_minutes` the time after
    which it starts no further one.
    """

    nproc: int = 1
    strategy: str | None = None
    resume_from: str | None = None
    timeout_seconds: float = 7200.0
    dry_run: bool = False
    limit: int | None = None
    time_budget_minutes: float | None = None


@dataclass
class StudyConfig:
    """A named set of cells; `harness.study.parts.searches` says what a part may have."""

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
