"""How long a cell will take and what it leaves on disk, from records of cells that have run.

The rule. A cell is compared with the nearest finished record of the same task and device: the same
precision, optimizer, model, options, ranks and study count first, in this order; among equals the
one with the most similar work, then the latest. From that record, seconds = start-up + optimizer
steps, scaled by parameters x steps, + everything else, scaled by parameters x tokens (three times
the trained tokens, for a backward pass costs two forward passes, plus the evaluated). Bytes on disk
are those of its folder, without what a dashboard keeps; of a published study, which is packed,
a share of its two files. Where no record compares there is no
estimate.
"""

import json
import math
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from harness.cells import store
from harness.config import ROTARY_FAMILIES, RunConfig, to_dict

LIKENESS = ("precision", "optimizer", "model", "options", "ranks")  # what counts first comes first


class Work(NamedTuple):
    """What a cell has to do."""

    parameters: float
    tokens: float
    optimizer_steps: int


class Known(NamedTuple):
    """What a finished cell took."""

    traits: dict[str, Any]
    work: Work
    startup_seconds: float
    step_seconds: float
    other_seconds: float
    disk_bytes: int
    finished: str


class Estimate(NamedTuple):
    """Of one cell; `checkpoint_bytes` are there only while it trains."""

    seconds: float
    disk_bytes: int
    checkpoint_bytes: float


class Estimator:
    """Answers from the records of the given study folders; `learn` adds those that come in."""

    def __init__(self, study_dirs: Iterable[Path] = ()) -> None:
        self._known: list[Known] = []
        self._answers: dict[str, Estimate | None] = {}
        for folder in study_dirs:
            # A record of another version, or a torn one, estimates nothing.
            for stored in store.read_records(folder, skip_broken=True):
                self.learn(stored.record, stored.disk_bytes)

    def learn(self, record: store.Record, disk_bytes: int) -> None:
        """Use a record for the estimates to come, if it ended as done."""
        known = _known(record, disk_bytes)
        if known is not None:
            self._known.append(known)
            self._answers = {}

    def estimate(self, config: RunConfig) -> Estimate | None:
        """What a planned cell takes, or None where no record compares."""
        values = to_dict(config)
        traits, key = _traits(values, config.study.name), json.dumps(_shape(values))
        # Kept here too: the live table's thread asks while `learn` empties the answers.
        answers = self._answers
        if key not in answers:
            answers[key] = self._nearest(traits, values)
        return answers[key]

    def _nearest(self, traits: dict[str, Any], config: dict[str, Any]) -> Estimate | None:
        same = [
            known
            for known in self._known
            if all(known.traits[key] == traits[key] for key in ("kind", "device"))
        ]
        if not same:
            return None
        counts = [k.work.parameters for k in same if k.traits["model"] == traits["model"]]
        work = _work(config, counts[-1] if counts else _parameters(config))

        def distance(known: Known) -> tuple[Any, ...]:
            unlike = (known.traits[k] != traits[k] for k in LIKENESS)
            ratio = work.parameters * work.tokens / (known.work.parameters * known.work.tokens)
            return (*unlike, known.traits["study"] != traits["study"], abs(math.log(ratio)))

        nearest = min(sorted(same, key=lambda known: known.finished, reverse=True), key=distance)
        return _scaled(nearest, work, saves=_saves(config["task"]))


def total(estimates: Iterable[Estimate | None]) -> str:
    """The sum in words: time and disk, and how many cells have no estimate."""
    listed = list(estimates)
    found = [item for item in listed if item is not None]
    if not found:
        return "no estimate of time and disk (no finished record compares)"
    disk = sum(item.disk_bytes for item in found) + max(item.checkpoint_bytes for item in found)
    missing = len(listed) - len(found)
    more = f", and {missing} without an estimate" if missing else ""
    return f"about {duration(sum(i.seconds for i in found))} and {size(disk)} of disk{more}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(number: float) -> str:
    """Bytes in the largest decimal unit that gives at least one."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number = number / 1000
    return f"{number:.1f} GB"


def _known(record: store.Record, disk_bytes: int) -> Known | None:
    metrics, config = record.metrics, record.config
    try:
        traits = _traits(config, record.study)
        work = _work(config, metrics["parameters"])
        start, end = (
            datetime.fromisoformat(record.provenance[key])
            for key in ("started_utc", "finished_utc")
        )
        seconds = (end - start).total_seconds()
        startup = min(float(metrics["startup_seconds"]), seconds)
        steps = float(metrics["step_median_seconds"]) * work.optimizer_steps
    except (KeyError, TypeError, ValueError):
        return None  # of an older form, or ended before it measured
    if record.status != "done" or min(work) <= 0:
        return None
    other = max(seconds - startup - steps, 0.0)
    finished = record.provenance["finished_utc"]
    return Known(traits, work, startup, steps, other, disk_bytes, finished)


def _saves(task: dict[str, Any]) -> bool:
    """Whether a cell writes checkpoints while it trains."""
    return task["kind"] != "memory" and 0 < task["checkpoint_every_steps"] < task["steps"]


def _scaled(known: Known, work: Work, saves: bool) -> Estimate:
    parameters = work.parameters / known.work.parameters
    steps = parameters * work.optimizer_steps / known.work.optimizer_steps
    seconds = known.step_seconds * steps
    seconds += known.other_seconds * parameters * work.tokens / known.work.tokens
    # Weights and two moments in float32: the largest that an optimizer here keeps.
    checkpoint = 12 * work.parameters if saves else 0.0
    return Estimate(known.startup_seconds + seconds, known.disk_bytes, checkpoint)


def _traits(config: dict[str, Any], study: str) -> dict[str, Any]:
    return {
        "kind": config["task"]["kind"],
        "device": config["device"],
        "precision": config["precision"],
        "optimizer": config["optimizer"]["name"],
        "options": config["optimizer"].get("options"),
        "model": config["model"],
        "study": study,
        "ranks": _ranks(config),
    }


def _shape(config: dict[str, Any]) -> list[Any]:
    """All that an estimate depends on."""
    keys = ("task", "device", "precision", "model", "seq_len", "micro_batch", "grad_accumulation")
    optimizer = [config["optimizer"]["name"], config["optimizer"]["options"]]
    settings = [config["study"]["name"], *(config[key] for key in keys)]
    return [optimizer, *settings, _ranks(config)]


def _ranks(config: dict[str, Any]) -> list[Any]:
    """Processes and strategy; records of one process hold no `launch`."""
    launch = config.get("launch", {})
    return [launch.get("nproc", 1), launch.get("strategy")]


def _work(config: dict[str, Any], parameters: float) -> Work:
    task = config["task"]
    batch = config["seq_len"] * config["micro_batch"] * config["grad_accumulation"]
    batch *= _ranks(config)[0]
    if task["kind"] == "memory":
        steps = task["warmup_optimizer_steps"] + task["timed_optimizer_steps"] + 2
        return Work(parameters, 3 * 2 * batch, steps)
    evaluations = 1 + math.ceil(task["steps"] / task["eval_every_steps"])
    tokens = 3 * batch * task["steps"] + task["eval_tokens"] * evaluations
    return Work(parameters, tokens, task["steps"])


def _parameters(config: dict[str, Any]) -> float:
    """Parameters of a model of this shape, within a few per cent; biases are left out."""
    model = config["model"]
    hidden, layers = model["hidden_size"], model["layers"]
    vocabulary = model["vocab_size"] or config["data"]["vocab_size"]
    if model["family"] not in ROTARY_FAMILIES:
        inner = model["intermediate_size"] or 4 * hidden
        embeddings = (vocabulary + model["max_positions"]) * hidden
        return float(embeddings + layers * (4 * hidden**2 + 2 * hidden * inner))
    inner = model["intermediate_size"] or 8 * hidden / 3
    head = model["head_size"] or hidden // model["heads"]
    heads = 2 * model["heads"] + 2 * (model["kv_heads"] or model["heads"])
    embeddings = vocabulary * hidden * (1 if model["tie_embeddings"] else 2)
    return float(embeddings + layers * (hidden * head * heads + 3 * hidden * inner))
