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
    """A decoder by its shape, or a pretrained one by `path` (hub id or local folder).

    `vocab_size` null takes the data's vocabulary; `kv_heads` null equals `heads`;
    `intermediate_size` null is 4 x hidden (GPT-2) or the family's own rule. `experts` of a mixture
    have `intermediate_size` each, and `experts_per_token` of them see a token; null elsewhere.
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
    `min_lr_ratio` x peak at `steps`. Evaluation reads `eval_tokens` tokens of `eval_split`,
    the last one of a run, which verdicts rest on, `final_eval_tokens` (null: as many).
    `memory_cap_gib` imitates a smaller machine: a run that needs more GiB ends as oom (CUDA: what
    the process may reserve; CPU: what it may add to itself after its imports); null for no cap.
    """

    kind: str = "pretrain"
    steps: int = 300
    warmup_steps: int = 30
    min_lr_ratio: float = 0.1
    grad_clip: float = 1.0
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


@dataclass
class TrackerConfig:
    """The mirror of the store: `name` none or wandb; `mode` offline or online."""

    name: str = "wandb"
    mode: str = "offline"
    project: str = "gefen-bench"
    entity: str | None = None


@dataclass
class LaunchConfig:
    """How cells are started; none of it changes a result.

    `limit` is the number of cells that a command runs at most, `time_budget_minutes` the time after
    which it starts no further one.
    """

    timeout_seconds: float = 7200.0
    dry_run: bool = False
    limit: int | None = None
    time_budget_minutes: float | None = None


@dataclass
class StudyConfig:
    """A named set of cells; `harness.studies.searches` says what a part may have."""

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
