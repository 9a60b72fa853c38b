"""What a cell is: its content-addressed identity, its label, its folder, and whether it is done."""

import hashlib
import importlib.metadata
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.cells import provenance, store
from harness.config import RunConfig, from_dict, to_dict
from harness.errors import UserError
from harness.models.files import fingerprint

COMPUTED = ("nproc", "strategy", "resume_from")  # what of `launch` changes a result
# Where a run writes, what mirrors it and who started it do not change what it computes.
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


def computed(launch: dict[str, Any]) -> dict[str, Any]:
    """What of `launch` changes a result: {} for one process that starts at its own beginning."""
    found = {key: launch[key] for key in COMPUTED}
    if found["resume_from"] is not None:
        found["resume_from"] = Path(found["resume_from"]).name  # the cell's id, wherever it lies
    return {} if found["nproc"] == 1 and found["resume_from"] is None else found


def cell_id(config: RunConfig, data_hash: str, code_hash: str) -> str:
    """16 hex digits of SHA-256 over the resolved configuration, the data and the code."""
    launch = computed(to_dict(config.launch))
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
    launch = computed(job["config"]["launch"])
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
