"""Plans cells: every check of a configuration, what defaults leave open, and its identity."""

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from harness import data, models, optimizers, tasks
from harness.cells import store
from harness.cells.identity import Cell, cache_dir
from harness.cells.lock import is_locked
from harness.cells.provenance import devices_named
from harness.cells.store import CHECKPOINT_FILE
from harness.config import DataConfig, LaunchConfig, RunConfig, validate
from harness.data import Examples
from harness.errors import UserError
from harness.models import inputs
from harness.models.files import check_length
from harness.study.origins import Origins


class Workers(Protocol):
    """What of an engine (`harness.launch.dispatch.Engine`) matters to the devices of its cells."""

    name: str

    @property
    def shares_machine(self) -> bool:
        """Whether the cells run on this machine."""


class Planner:
    """Turns configurations into cells; each file's fingerprint is taken once, data prepared once.

    A command plans all of its cells with one planner, so that code changed in between is noticed
    instead of giving a study cells of two versions. `workers` are those of the engine that will
    run the cells, None where this process will; `root` is the folder of the code.
    """

    def __init__(
        self,
        progress: bool = True,
        workers: Workers | None = None,
        root: Path | None = None,
    ) -> None:
        self.progress, self._workers = progress, workers
        self._origins = Origins(root)
        self._data: dict[str, Examples] = {}
        self._checked: set[str] = set()

    def cells(self, configs: list[RunConfig]) -> list[Cell]:
        """One cell for each configuration; equal configurations give equal ids.

        All checks come before anything slow. Raises UserError with one sentence.
        """
        configs = [with_model_tokenizer(config) for config in configs]
        for config in configs:
            self._check(config)
        here = self._workers is None or self._workers.shares_machine
        cells = [self._cell(resolve(config, here)) for config in configs]
        for cell in cells:
            _check_resume(cell)
        return cells

    def _check(self, config: RunConfig) -> None:
        """Every check; those of builders once for all configurations that they see alike."""
        validate(config)
        groups = [config.optimizer, config.model, config.data, config.launch]
        key = repr([*groups, config.device, config.seq_len, config.cache])
        if key in self._checked:
            return
        optimizers.check(config.optimizer)
        check_device(config, self._workers)
        _check_shards(config)
        models.check(config.model)
        check_length(config.model.path, config.seq_len)
        data.check(config.data, cache_dir(config) / "data")
        self._checked.add(key)

    def _cell(self, config: RunConfig) -> Cell:
        examples = self._examples(config.data, cache_dir(config))
        self._check_amount(config, examples)
        return self._origins.cell(config, examples.hash)

    def _examples(self, config: DataConfig, cache: Path) -> Examples:
        key = repr(config)
        if key not in self._data:
            self._data[key] = data.load(config, cache / "data", progress=self.progress)
        return self._data[key]

    def _check_amount(self, config: RunConfig, examples: Examples) -> None:
        """UserError where a split that the cell reads is shorter than one sequence, or the model's
        vocabulary smaller than the data's."""
        model, wanted = config.model, examples.vocab_size
        if model.path is None and model.vocab_size is not None and model.vocab_size < wanted:
            raise UserError(
                f"model.vocab_size={model.vocab_size} is below the {wanted} token ids of the data; "
                "set it to null to take the data's."
            )
        held_out = "eval_split" in tasks.reads(config.task.kind)
        for split in ("train", *([config.task.eval_split] if held_out else [])):
            key = repr([examples.hash, config.data, split, config.seq_len])
            if key in self._checked:
                continue
            if not examples.divided(config.data_seed or 0).examples(split, config.seq_len):
                raise UserError(
                    f"seq_len={config.seq_len} is longer than the {split} split of data "
                    f"{config.data.name}; choose a smaller one, or more data."
                )
            self._checked.add(key)


def plan(configs: list[RunConfig], progress: bool = True) -> list[Cell]:
    """The distinct cells of `configs`, in their order; raises as `Planner.cells`."""
    cells: dict[str, Cell] = {}
    for cell in Planner(progress).cells(configs):
        cells.setdefault(cell.id, cell)
    return list(cells.values())


def resolve(config: RunConfig, here: bool = True) -> RunConfig:
    """Fill in what defaults leave open (seeds, rate, device) so that identity is explicit.

    Raises UserError when `device=cuda` is asked for `here` and none is there.
    """
    validate(config)
    return replace(
        config,
        model=inputs.for_length(config.model, config.seq_len),
        seq_len=inputs.sequence_length(config.model, config.seq_len),
        optimizer=replace(
            config.optimizer, lr=config.optimizer.lr * config.optimizer.lr_factor, lr_factor=1.0
        ),
        seed=_common_seed(config),
        model_seed=config.seed if config.model_seed is None else config.model_seed,
        data_seed=config.seed if config.data_seed is None else config.data_seed,
        device=resolved_device(config.device, here),
        launch=_resolved_launch(config.launch),
    )


def with_model_tokenizer(config: RunConfig) -> RunConfig:
    """`data.tokenizer` model as the files that it stands for: those of `model.path`, else bpe."""
    if config.data.tokenizer != "model":
        return config
    return replace(config, data=replace(config.data, tokenizer=config.model.path or "bpe"))


def _common_seed(config: RunConfig) -> int:
    """`seed`, or the value that both parts of it were given."""
    parts = {config.model_seed, config.data_seed} - {None}
    both = config.model_seed is not None and config.model_seed == config.data_seed
    return parts.pop() or 0 if both else config.seed


def _resolved_launch(launch: LaunchConfig) -> LaunchConfig:
    """The launch with its strategy explicit: none for one process, else ddp unless named."""
    if launch.nproc == 1:
        return replace(launch, strategy=None)
    return replace(launch, strategy=launch.strategy or "ddp")


def check_device(config: RunConfig, workers: Workers | None) -> None:
    """UserError for a device that `workers` (None: none, this process runs the cells) cannot give.

    Cells of another machine need their device named: what is seen here says nothing about it. Jobs
    beside each other on this one get a device each.
    """
    if workers is None:
        return
    if not workers.shares_machine:
        if config.device == "auto":
            raise UserError(
                f"device=auto cannot be decided for {workers.name}, whose cells run on other "
                "machines; give device=cuda or device=cpu."
            )
    elif config.launch.nproc > 1 and resolved_device(config.device) == "cuda":
        raise UserError(
            f"launch.nproc={config.launch.nproc} on GPUs does not work with {workers.name}, which "
            "gives each cell one; run without a launcher, or use device=cpu."
        )


def resolved_device(name: str, here: bool = True) -> str:
    """`cpu` or `cuda`, for auto by what torch sees; UserError where cuda is not there.

    Not `here`, a worker finds out whether there is a device
    (`harness.train.distributed.ranks.check_devices`).
    """
    if name == "cpu" or not here:
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise UserError(
            "device=cuda was asked for, but torch sees no CUDA device"
            f"{devices_named()}; use device=cpu."
        )
    return "cpu"


def _check_shards(config: RunConfig) -> None:
    """UserError where FSDP would have to cut what the optimizer needs whole."""
    cut = config.launch.nproc > 1 and config.launch.strategy == "fsdp"
    if cut and not optimizers.shards(config.optimizer):
        name = config.optimizer.variant or config.optimizer.name
        raise UserError(
            f"optimizer {name} does not work on the shards of launch.strategy=fsdp; choose "
            "launch.strategy=ddp."
        )


def _check_resume(cell: Cell) -> None:
    """UserError unless `launch.resume_from` is a stopped cell of this very run on other ranks.

    Nothing is asked of it where the cell has a checkpoint or a result of its own.
    """
    if cell.config.launch.resume_from is None:
        return
    if (cell.directory / CHECKPOINT_FILE).exists() or cell.finished() is not None:
        return
    folder = Path(cell.config.launch.resume_from)
    told = f"launch.resume_from={folder}"
    if is_locked(folder):
        raise UserError(f"{told} is running; stop it, or wait for its result.")
    if not (folder / CHECKPOINT_FILE).exists():
        raise UserError(
            f"{told} holds no {CHECKPOINT_FILE}; name the folder of an unfinished cell."
        )
    job = store.read_json(folder / "job.json")
    if job.get("run") != cell.run:
        raise UserError(
            f"{told} is another run: all but launch.nproc, launch.strategy and micro_batch must be "
            "equal, and so must launch.nproc x micro_batch."
        )
