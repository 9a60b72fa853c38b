"""What a cell is: its content-addressed identity, its label, its folder, and whether it is done."""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import data, models, optimizers
from harness.cells import provenance, store
from harness.config import DataConfig, RunConfig, from_dict, to_dict, validate
from harness.errors import UserError
from harness.launch import devices, ranks_checks
from harness.models import inputs
from harness.models.files import check_length, fingerprint

# Where a run writes, what mirrors it and who started it do not change what it computes; what of
# `launch` does is put back.
NOT_IDENTITY = ("root", "cache", "tracker", "launch", "study", "part", "seed")


@dataclass(frozen=True)
class Cell:
    """One planned run with everything that its identity rests on."""

    id: str
    label: str
    config: RunConfig
    data_hash: str
    code_hash: str

    @property
    def study_dir(self) -> Path:
        """Folder of the study that the cell belongs to."""
        return Path(self.config.root) / self.config.study.name

    @property
    def directory(self) -> Path:
        """Folder that holds the cell's record, curve, log and checkpoint."""
        return self.study_dir / "cells" / self.id

    def finished(self) -> store.Record | None:
        """The record of an earlier run that counts as a result, or None."""
        try:
            record = store.read_record(self.directory)
        except UserError:
            return None  # absent, or torn by something other than this program: run it
        return record if record.is_result else None


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
        device=devices.resolved(config.device, here),
        launch=ranks_checks.resolved(config.launch),
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


def cell_id(config: RunConfig, data_hash: str, code_hash: str) -> str:
    """16 hex digits of SHA-256 over the resolved configuration, the data and the code."""
    launch = ranks_checks.computed(to_dict(config.launch))
    return _digest(config, {"launch": launch} if launch else {}, data_hash, code_hash)


def run_id(config: RunConfig, data_hash: str, code_hash: str) -> str:
    """As `cell_id`, but equal for cells that compute the same on other processes."""
    together = config.micro_batch * config.launch.nproc
    return _digest(replace(config, micro_batch=together), {}, data_hash, code_hash)


def _digest(config: RunConfig, more: dict[str, Any], data_hash: str, code_hash: str) -> str:
    identity: dict[str, Any] = to_dict(config)
    for key in NOT_IDENTITY:
        identity.pop(key)
    identity |= more
    identity["optimizer"].pop("variant")  # a name for what the settings already say
    # The data hash stands for the texts and the tokenizer, wherever they lie.
    for key in ("path", "tokenizer"):
        identity["data"].pop(key)
    if config.model.path is not None:
        identity["model"]["path"] = fingerprint(config.model.path)
    identity["torch"] = importlib.metadata.version("torch").partition("+")[0]
    text = json.dumps([identity, data_hash, code_hash], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def label(config: RunConfig) -> str:
    """A short name a person can tell runs apart by: model/variant/length/precision/lr/seed.

    Under a memory cap the batch stands behind the length, as 128x4: it is what is searched. The
    fold stands behind the seed, as s0f3, several processes before the rate, as 2xfsdp.
    """
    seeds = {config.model_seed, config.data_seed} - {None}
    same = len(seeds) <= 1
    seed = f"s{config.seed}" if same else f"m{config.model_seed}d{config.data_seed}"
    seed += "" if config.data.folds is None else f"f{config.data.fold}"
    optimizer = config.optimizer.variant or config.optimizer.name
    capped = config.task.memory_cap_gib is not None
    length = f"{config.seq_len}x{config.micro_batch}" if capped else str(config.seq_len)
    parts = [config.model.name, optimizer, length, config.precision]
    if config.launch.nproc > 1:
        parts.append(f"{config.launch.nproc}x{config.launch.strategy}")
    return "/".join((*parts, f"lr{config.optimizer.lr:.3g}", seed))


def cache_dir(config: RunConfig) -> Path:
    """Folder of prepared data: `cache`, else GEFEN_BENCH_CACHE, else ~/.cache/gefen-bench."""
    named = config.cache or os.environ.get("GEFEN_BENCH_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "gefen-bench"


class Planner:
    """Turns configurations into cells; the code's hash is taken once, data is prepared once.

    A command plans all of its cells with one planner, so that code changed in between is noticed
    by the workers instead of giving a study cells of two versions. `workers` are those of the
    engine that will run the cells, None where this process will.
    """

    def __init__(self, progress: bool = True, workers: devices.Workers | None = None) -> None:
        self.progress, self._workers = progress, workers
        self.code_hash = provenance.code_hash()
        self._data_hashes: dict[str, str] = {}

    def cells(self, configs: list[RunConfig]) -> list[Cell]:
        """One cell for each configuration; equal configurations give equal ids.

        All checks come before anything slow. Raises UserError with one sentence.
        """
        configs = [with_model_tokenizer(config) for config in configs]
        for config in configs:
            validate(config)
            optimizers.check(config.optimizer)
            devices.check(config, self._workers)
            ranks_checks.check_optimizer(config)
            models.check(config.model)
            check_length(config.model.path, config.seq_len)
            data.check(config.data, cache_dir(config) / "data")
        here = self._workers is None or self._workers.shares_machine
        cells = [self._cell(resolve(config, here)) for config in configs]
        for cell in cells:
            ranks_checks.check_resume(cell)
        return cells

    def _cell(self, config: RunConfig) -> Cell:
        digest = self._data_hash(config.data, cache_dir(config))
        name = cell_id(config, digest, self.code_hash)
        return Cell(name, label(config), config, digest, self.code_hash)

    def _data_hash(self, config: DataConfig, cache: Path) -> str:
        key = json.dumps(to_dict(config), sort_keys=True)
        if key not in self._data_hashes:
            prepared = data.load(config, cache / "data", progress=self.progress)
            self._data_hashes[key] = prepared.hash
        return self._data_hashes[key]


def plan(configs: list[RunConfig], progress: bool = True) -> list[Cell]:
    """The distinct cells of `configs`, in their order; raises as `Planner.cells`."""
    cells: dict[str, Cell] = {}
    for cell in Planner(progress).cells(configs):
        cells.setdefault(cell.id, cell)
    return list(cells.values())


def job(cell: Cell, attempt: int, command: str) -> dict[str, Any]:
    """The description of one attempt that the worker process reads."""
    return {
        "id": cell.id,
        "label": cell.label,
        "attempt": attempt,
        "command": command,
        "data_hash": cell.data_hash,
        "code_hash": cell.code_hash,
        "cache": str(cache_dir(cell.config)),
        "config": to_dict(cell.config),
    }


def blank_record(job: dict[str, Any], device: str) -> store.Record:
    """A record with identity and provenance, before anything was measured."""
    config = {k: v for k, v in job["config"].items() if k not in ("launch", "root", "cache")}
    launch = ranks_checks.computed(job["config"]["launch"])
    return store.Record(
        id=job["id"],
        study=config.pop("study")["name"],
        part=config["part"],
        label=job["label"],
        status="crashed",
        attempt=job["attempt"],
        error=None,
        config={**config, **({"launch": launch} if launch else {})},
        provenance=provenance.collect(job["command"], device, job["data_hash"], job["code_hash"]),
        metrics={},
    )


def job_config(job: dict[str, Any]) -> RunConfig:
    """The typed configuration of a job."""
    return from_dict(RunConfig, job["config"])


def run_cell(config: RunConfig, progress: bool = True, command: str = "") -> store.Record:
    """Run one cell in a fresh process, unless its result is already there, and return its record.

    The plain-Python door to the harness; `gefen-bench` is the other one.
    """
    from harness.study import sweep

    records: list[store.Record] = []
    collect: Callable[[store.Record], None] = records.append
    sweep.run_cells(plan([config], progress), command, progress=progress, on_record=collect)
    return records[0]
