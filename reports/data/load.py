"""Records of a study -> two tidy tables: `runs` (one row a cell) and `curves` (one row a value)."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from harness.cells import store

BASELINE = "adamw"
TOKEN_LOSS = ("pretrain", "finetune")  # tasks whose loss is in nats a token
TRAINING = (*TOKEN_LOSS, "classify")
CLIP_AND_NOISE = {"grad_clip": 1.0, "gradient_noise": 0.0}  # what a record without the key ran with
CURVE_COLUMNS = ["id", "step", "tokens", "train_seconds", "key", "value"]
METRICS_ALWAYS_PRESENT = (
    "parameters",
    "parameter_bytes",
    "gradient_bytes",
    "optimizer_state_bytes",
    "optimizer_state_predicted_bytes",
    "optimizer_checkpoint_bytes",
    "state_bytes_per_parameter",
    "peak_bytes",
    "activation_bytes",
    "step_transient_bytes",
    "first_step_seconds",
    "step_median_seconds",
    "step_p10_seconds",
    "step_p90_seconds",
    "steps",
    "tokens",
    "train_seconds",
    "tokens_per_second",
    "final_eval_loss",
    "final_eval_bits_per_byte",
)


class ReportError(Exception):
    """What stops a report, in one sentence: which file or value, and what was expected."""


@dataclass(frozen=True)
class StudyData:
    """A study as tables.

    `runs`: one row a cell; metrics keep their record names (units in the name), identity columns
    are id, part, label, status, optimizer, variant, model, seq_len, precision, seeds, hashes.
    `curves`: id, step, tokens, train_seconds, key, value. `pending`: planned, no record yet.
    `places`: of each id, where its record lies from `folder`.
    """

    folder: Path
    study: dict[str, Any]
    runs: pd.DataFrame
    curves: pd.DataFrame
    pending: list[dict[str, Any]]
    places: dict[str, str] = field(default_factory=dict)


def load(folder: Path) -> StudyData:
    """Read one study folder. Raises `ReportError` when it is absent, empty or broken."""
    if not folder.is_dir():
        raise ReportError(f"{folder} is not a folder; give one that holds study.json and records.")
    try:
        study = store.read_study(folder)
        stored = store.read_records(folder, [cell["id"] for cell in study.get("cells", [])])
    except Exception as error:  # any reader failure is the user's one sentence, named by the store
        raise ReportError(f"{folder} cannot be read as a study: {one_line(error)}") from error
    if not stored:
        raise ReportError(f"{folder} holds no record yet; run its study first, then report on it.")
    try:
        rows = [row_of(item.record.to_dict()) for item in stored]
    except (KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{folder} has a record without an expected key: {error}.") from error
    runs = plain_text(pd.DataFrame(rows))
    runs["variant"] = variants(runs)
    places = {item.record.id: item.place for item in stored}
    pending = [cell for cell in study.get("cells", []) if cell["id"] not in places]
    return StudyData(folder, study, runs, curves_of(folder, places), pending, places)


def plain_text(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its text as Python strings.

    A report cuts small tables into many smaller ones; columns of Arrow text, made for long tables,
    take a tenth of its time there.
    """
    texts: list[str] = list(table.select_dtypes("str").columns)
    plain: pd.DataFrame = table.astype(dict.fromkeys(texts, "object"))
    return plain.copy()  # in one piece: pandas warns of tables in many


def row_of(record: dict[str, Any]) -> dict[str, Any]:
    """One record as a flat row; metrics a cell has not reached become missing values."""
    config, provenance = record["config"], record["provenance"]
    optimizer, task = config["optimizer"], config.get("task", {})
    settings = {key: value for key, value in optimizer.items() if key not in ("name", "variant")}
    settings |= conditions_of(config, provenance)
    seed = config.get("seed", 0)
    row: dict[str, Any] = {key: record.get(key) for key in ("id", "part", "label", "status")}
    row |= {"error": record.get("error") or "", "attempt": record.get("attempt", 1)}
    row |= {
        "optimizer": optimizer.get("variant") or optimizer["name"],
        "lr": optimizer.get("lr"),
        "settings": json.dumps(settings, sort_keys=True),
        "model": model_name(config["model"]),
        "seq_len": config.get("seq_len"),
        "precision": config.get("precision"),
        "ranks": ranks_of(config),
        "seed": seed,
        "model_seed": seed if config.get("model_seed") is None else config["model_seed"],
        "data_seed": seed if config.get("data_seed") is None else config["data_seed"],
        "task": task.get("kind"),
        "planned_steps": task.get("steps"),
        "eval_split": task.get("eval_split"),
        "config": config,
    }
    for key in ("data_hash", "code_hash", "device", "device_name", "cpu_model", "cpu_cores"):
        row[key] = "" if provenance.get(key) is None else provenance[key]
    for key in ("git_commit", "git_dirty", "started_utc", "finished_utc", "command", "os"):
        row[key] = provenance.get(key)
    row |= {"python": provenance.get("python"), "packages": provenance.get("packages", {})}
    row |= {"threads": provenance.get("threads"), "ram_bytes": provenance.get("ram_bytes")}
    row |= dict.fromkeys(METRICS_ALWAYS_PRESENT, float("nan"))
    metrics = record.get("metrics") or {}
    row |= {key: float("nan") if value is None else value for key, value in metrics.items()}
    return row


def model_name(model: dict[str, Any]) -> str:
    """The model's name; with adapters or activations computed again it is another condition."""
    adapters = f"+lora{model['lora_rank']}" if model.get("lora_rank") else ""
    recompute = "+recompute" if model.get("activation_checkpointing") else ""
    return f"{model['name']}{adapters}{recompute}"


def ranks_of(config: dict[str, Any]) -> str:
    """On how many processes a cell ran, as "2 x fsdp"; "1" for one, of which records say nothing.

    What was continued from a cell on other processes is told apart.
    """
    launch = config.get("launch") or {}
    count = launch.get("nproc", 1)
    text = f"{count} x {launch.get('strategy')}" if count > 1 else "1"
    resumed = launch.get("resume_from")
    return text if resumed is None else f"{text} after {resumed}"


def conditions_of(config: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    """What must not be averaged over, besides what tables and panels are split by anyway."""
    task = config.get("task", {})
    training = {}
    if task.get("kind") in TRAINING:
        batch = config.get("micro_batch", 1) * config.get("grad_accumulation", 1)
        batch *= (config.get("launch") or {}).get("nproc", 1)
        final = task.get("final_eval_tokens") or task.get("eval_tokens")
        training = {"steps": task.get("steps"), "split": task.get("eval_split"), "batch": batch}
        training["evaluated"] = final
        training |= {key: float(task.get(key, usual)) for key, usual in CLIP_AND_NOISE.items()}
    hashes = {"code": provenance.get("code_hash"), "data": provenance.get("data_hash")}
    short = {key: str(value)[:8] for key, value in hashes.items()}
    several = {} if ranks_of(config) == "1" else {"ranks": ranks_of(config)}
    return {**training, **several, **short, "device": provenance.get("device")}


def variants(runs: pd.DataFrame) -> pd.Series:
    """Optimizer name, with the settings or conditions that differ where it ran with several.

    Only cells of one task, model, sequence length and precision count as "several", so a rate that
    was tuned for each sequence length does not split an optimizer.
    """
    names = runs["optimizer"].astype(object).copy()
    keys = ["optimizer", "task", "model", "seq_len", "precision"]
    for _, group in runs.groupby(keys, dropna=False):
        if group["settings"].nunique() < 2:
            continue
        settings = [json.loads(text) for text in group["settings"]]
        changed = differing(settings)
        for index, setting in zip(group.index, settings, strict=True):
            flat = flatten(setting)
            tail = ", ".join(f"{key.split('.')[-1]} {flat.get(key)}" for key in changed)
            names[index] = f"{names[index]} ({tail})"
    return names


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing(configs: list[dict[str, Any]], ignore: tuple[str, ...] = ()) -> dict[str, list[Any]]:
    """Dotted keys with more than one value over `configs`, and those values in order.

    A key is ignored when it equals an entry of `ignore` or lies below one.
    """
    flats = [flatten(config) for config in configs]
    found: dict[str, list[Any]] = {}
    for key in sorted({key for flat in flats for key in flat}):
        if any(key == name or key.startswith(f"{name}.") for name in ignore):
            continue
        values: list[Any] = []
        for flat in flats:
            if flat.get(key) not in values:
                values.append(flat.get(key))
        if len(values) > 1:
            found[key] = values
    return found


def curves_of(folder: Path, cells: Iterable[str]) -> pd.DataFrame:
    """The curves of these cells of a study below one another, with their ids."""
    try:
        table = store.read_curves(folder, cells)
    except Exception as error:
        raise ReportError(f"Curves of {folder} cannot be read: {one_line(error)}") from error
    return table.rename_columns(CURVE_COLUMNS).to_pandas()


def each(frame: pd.DataFrame) -> Iterable[Any]:
    """The rows of a table as named tuples."""
    return frame.itertuples()


def one_line(error: Exception) -> str:
    """The message of an exception on one line."""
    return " ".join(str(error).split()) or type(error).__name__
