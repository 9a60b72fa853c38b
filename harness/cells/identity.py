"""What a cell is: its content-addressed identity, its label, its folder, and whether it is done."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.cells import provenance, store
from harness.cells.arm import arm
from harness.config import RunConfig, from_dict, to_dict
from harness.config.groups import cache_folder
from harness.errors import UserError

COMPUTED = ("nproc", "strategy", "resume_from")  # what of `launch` changes a result
# Where a run writes, what mirrors it and who started it do not change what it computes.
NOT_IDENTITY = ("root", "cache", "tracker", "launch", "study", "part", "seed", "task")
# Names for what the settings already say; the data hash stands for texts and tokenizer, and the
# fingerprint of the weights for where they lie.
NAMES = {
    "optimizer": ("variant",),
    "model": ("name", "path"),
    "data": ("name", "path", "tokenizer", "copies"),
}


@dataclass(frozen=True)
class Origin:
    """What a cell's numbers rest on beside its settings, as it was when the cell was planned.

    `data` is the hash of the prepared data; `code` holds fingerprints by part: core (the run and
    its task), data, model and optimizer; `files` are stamps of all these files
    (`harness.cells.code`); `libraries` are versions; `weights` is the fingerprint of `model.path`.
    """

    data: str
    code: dict[str, str]
    libraries: dict[str, str]
    weights: str | None = None
    files: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Cell:
    """One planned run with everything that its identity rests on.

    `run` is the identity of what it computes: as `id`, but equal on other numbers of processes.
    `arm` is what cells share that differ in seeds and folds alone (`harness.cells.arm`).
    """

    id: str
    run: str
    arm: str
    label: str
    config: RunConfig
    origin: Origin

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


def identify(config: RunConfig, origin: Origin, reads: Collection[str]) -> Cell:
    """The cell of a resolved configuration; `reads` are the keys of TaskConfig that its task reads.

    Ids are 16 hex digits of SHA-256 over the settings, the data, the code and the libraries.
    """
    values = to_dict(config)
    settings = _settings(values, reads)
    launch = computed(values["launch"])
    own = {**settings, **({"launch": launch} if launch else {})}
    together = config.micro_batch * config.launch.nproc
    return Cell(
        id=_digest(own, origin),
        run=_digest({**settings, "micro_batch": together}, origin),
        arm=arm(own, [origin.data, origin.weights]),
        label=label(config),
        config=config,
        origin=origin,
    )


def _settings(values: dict[str, Any], reads: Collection[str]) -> dict[str, Any]:
    """What of a configuration decides the numbers of a cell of one process."""
    kept = {key: value for key, value in values.items() if key not in NOT_IDENTITY}
    for group, names in NAMES.items():
        kept[group] = {key: value for key, value in kept[group].items() if key not in names}
    task = {key: value for key, value in values["task"].items() if key in reads}
    return {**kept, "task": {**task, "kind": values["task"]["kind"]}}


def _digest(settings: dict[str, Any], origin: Origin) -> str:
    rest = [origin.data, origin.code, origin.libraries, origin.weights]
    text = json.dumps([settings, *rest], sort_keys=True)
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
    """Folder of prepared data; `cache` names another. UserError where there is none."""
    return cache_folder(config.cache)


def job(cell: Cell, attempt: int, command: str) -> dict[str, Any]:
    """The description of one attempt that the worker process reads."""
    return {
        **planned(cell),
        "attempt": attempt,
        "command": command,
        "cache": str(cache_dir(cell.config)),
    }


def planned(cell: Cell) -> dict[str, Any]:
    """A cell as plain containers; `from_planned` brings it back in another process."""
    return {
        "id": cell.id,
        "run": cell.run,
        "arm": cell.arm,
        "label": cell.label,
        "origin": asdict(cell.origin),
        "config": to_dict(cell.config),
    }


def from_planned(values: dict[str, Any]) -> Cell:
    """The cell of `planned`, or of a job."""
    origin = Origin(**values["origin"])
    names = {key: values[key] for key in ("id", "run", "arm", "label")}
    return Cell(**names, config=job_config(values), origin=origin)


def blank_record(job: dict[str, Any], device: str) -> store.Record:
    """A record with identity and provenance, before anything was measured."""
    config = {k: v for k, v in job["config"].items() if k not in ("launch", "root", "cache")}
    launch = computed(job["config"]["launch"])
    origin = Origin(**job["origin"])
    found = provenance.collect(job["command"], device, origin.data, origin.code["core"])
    parts = {part: mark for part, mark in origin.code.items() if part != "core"}
    return store.Record(
        id=job["id"],
        study=config.pop("study")["name"],
        part=config["part"],
        label=job["label"],
        status="crashed",
        attempt=job["attempt"],
        error=None,
        config={**config, **({"launch": launch} if launch else {})},
        provenance={**found, "code": parts, "libraries": origin.libraries, "arm": job["arm"]},
        metrics={},
    )


def job_config(job: dict[str, Any]) -> RunConfig:
    """The typed configuration of a job."""
    return from_dict(RunConfig, job["config"])
