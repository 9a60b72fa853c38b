"""Records of a study -> two tidy tables: `runs` (one row a cell) and `curves` (one row a value)."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from harness.cells import store
from reports.data.identity import model_name, models, ranks_of, settings_of, variants

BASELINE = "adamw"
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
        study = checked_study(store.read_study(folder), folder / store.STUDY_FILE)
        stored = store.read_records(folder, [cell["id"] for cell in study.get("cells", [])])
    except ReportError:
        raise
    except Exception as error:  # any reader failure is the user's one sentence, named by the store
        raise ReportError(f"{folder} cannot be read as a study: {one_line(error)}") from error
    if not stored:
        raise ReportError(f"{folder} holds no record yet; run its study first, then report on it.")
    rows = [checked_row(item.record.to_dict(), f"{folder / item.place}") for item in stored]
    runs = plain_text(pd.DataFrame(rows))
    runs["model"] = models(runs)
    runs["variant"] = variants(runs)
    places = {item.record.id: item.place for item in stored}
    pending = [cell for cell in study.get("cells", []) if cell["id"] not in places]
    return StudyData(folder, study, runs, curves_of(folder, places), pending, places)


def checked_study(study: dict[str, Any], path: Path) -> dict[str, Any]:
    """The study. Raises `ReportError` that names its file where cells or claims are no lists."""
    cells, claims = study.get("cells", []), study.get("claims", [])
    if not isinstance(cells, list) or not all(
        isinstance(cell, dict) and isinstance(cell.get("id"), str) for cell in cells
    ):
        raise ReportError(f"{path} has a broken key cells; it must list mappings with an id.")
    if not isinstance(claims, list) or not all(isinstance(claim, str) for claim in claims):
        raise ReportError(f"{path} has claims={claims!r}; it must be a list of names.")
    return study


def checked_row(record: dict[str, Any], place: str) -> dict[str, Any]:
    """`row_of` a record. Raises `ReportError` that names its file for one that is broken."""
    try:
        row = row_of(record)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"lacks the key {error}" if isinstance(error, KeyError) else f"is broken: {error}"
        raise ReportError(f"The record in {place} {what}.") from error
    for key in METRICS_ALWAYS_PRESENT:
        if not isinstance(row[key], int | float) or isinstance(row[key], bool):
            raise ReportError(f"The record in {place} has {key}={row[key]!r}; it must be a number.")
    return row


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
    seed = config.get("seed", 0)
    row: dict[str, Any] = {key: record.get(key) for key in ("id", "part", "label", "status")}
    row |= {"error": record.get("error") or "", "attempt": record.get("attempt", 1)}
    row |= {
        "optimizer": optimizer.get("variant") or optimizer["name"],
        "lr": optimizer.get("lr"),
        "settings": json.dumps(settings_of(config, provenance), sort_keys=True),
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
