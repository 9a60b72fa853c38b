"""Folders of records, whatever wrote them, as the one table that estimators read.

A study holds cells. `gefen-step` and `python -m harness.research.robustness` write one JSON file
each; a row made from it has as id the JSON pointer (RFC 6901) of the value it was read from.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.cells import store
from reports.data import step_bench as steps
from reports.data.load import CURVE_COLUMNS, METRICS_ALWAYS_PRESENT, ReportError, StudyData, load

STATE_FILE = "robustness.json"
# Names of the records' forms of the library as optimizers; others keep their form's name.
FORMS = {("factored", 8): "gefen", ("factored", 4): "gefen_4bit"}
# Names of published models in robustness.json as files of configs/model.
MODELS = {"Llama-3 8B": "llama3_8b", "Qwen3 0.6B": "qwen3_600m", "Qwen3 8B": "qwen3_8b"}
MODELS |= {"GPT-2 124M": "gpt2_124m", "Mixtral 8x7B": "mixtral_8x7b"}
COLUMNS = (
    *("id", "part", "label", "status", "error", "optimizer", "model", "seq_len", "precision"),
    *("lr", "seed", "model_seed", "data_seed", "task", "planned_steps", "eval_split", "config"),
    *("data_hash", "code_hash", "device", "threads", "started_utc", "settings", "packages"),
)


@dataclass(frozen=True)
class Source:
    """A folder of records: `data` as tables, `kind`, and where the record of an id lies."""

    name: str
    kind: str
    data: StudyData

    def record(self, identity: str) -> str:
        """Path of the file that holds `identity`, relative to the folder, with line or pointer."""
        return self.data.places.get(identity, f"{self.kind}#{identity}")


def discover(folders: Iterable[Path]) -> dict[str, Source]:
    """The sources in these folders by name; each is a source itself or holds some.

    Raises `ReportError` for a folder that is absent, holds none, or repeats a name.
    """
    found: dict[str, Source] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"{folder} is not a folder; give one that holds records of studies.")
        below = [path for path in sorted(folder.iterdir()) if path.is_dir() and kind_of(path)]
        inside = [folder] if kind_of(folder) else below
        if not inside:
            raise ReportError(f"{folder} holds no study (a folder with study.json and records).")
        for path in inside:
            source = read(path)
            if source.name in found:
                other = found[source.name].data.folder
                raise ReportError(f"{path} and {other} are both named {source.name}; give one.")
            found[source.name] = source
    return found


def kind_of(folder: Path) -> str:
    """study, or the name of the JSON file that the folder holds; "" where it holds neither."""
    if (folder / store.STUDY_FILE).is_file():
        return "study"
    for name in (steps.FILE, STATE_FILE):
        if (folder / name).is_file():
            return name
    return ""


def read(folder: Path) -> Source:
    """The records of one folder."""
    kind = kind_of(folder)
    name = folder.resolve().name
    if kind == "study":
        data = load(folder)
        return Source(str(data.study.get("name") or name), kind, data)
    try:
        rows, study = (step_rows if kind == steps.FILE else state_rows)(folder)
    except (KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{folder / kind} lacks an expected key: {error}.") from error
    except store.UserError as error:
        raise ReportError(str(error)) from error
    runs = pd.DataFrame(rows)
    for key in (*COLUMNS, *METRICS_ALWAYS_PRESENT):
        if key not in runs:
            runs[key] = math.nan if key in METRICS_ALWAYS_PRESENT else None
    runs["variant"] = runs["optimizer"]
    runs["ranks"] = "1"  # neither document holds several processes that work together
    curves = pd.DataFrame({key: [] for key in CURVE_COLUMNS})
    return Source(name, kind, StudyData(folder, {"name": name, **study}, runs, curves, []))


def step_rows(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """gefen-step: one row for each candidate of each process; a process is a turn."""
    document = steps.read(folder)
    provenance, rows = document["provenance"], list[dict[str, Any]]()
    for number, condition in enumerate(document["conditions"]):
        shared = {key: condition[key] for key in ("model", "precision", "parameters")}
        shared |= {key: provenance.get(key) or "" for key in ("data_hash", "code_hash")}
        shared |= {"device": document["device"], "task": "step", "config": {}}
        for turn, run in enumerate(condition["runs"]):
            seeds = {"seed": turn, "model_seed": turn, "data_seed": turn}
            seeds["threads"] = run.get("threads")
            failed = run.get("failed") or {}
            entries = {**{name: {} for name in failed}, **run["candidates"]}
            for name, entry in entries.items():
                pointer = f"/conditions/{number}/runs/{turn}/candidates/{name}"
                done = {"status": "crashed" if name in failed else "done"}
                done["error"] = failed.get(name, "")
                metrics = {key: entry.get(key) for key in METRICS_ALWAYS_PRESENT if key in entry}
                head = {"id": pointer, "label": f"{condition['model']}/{name}/{turn}"}
                rows.append({**shared, **seeds, **done, **head, "optimizer": name, **metrics})
        rows += failed_rows(condition, f"/conditions/{number}/failed_processes", shared)
    if not rows:
        raise ReportError(f"{folder} has no finished process.")
    return rows, {"command": provenance.get("command"), "title": "Times of optimizer steps"}


def failed_rows(
    condition: dict[str, Any], pointer: str, shared: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row for each candidate of each process of gefen-step that gave nothing (a timeout, say)."""
    first = len(condition["runs"])
    threads = condition["runs"][0].get("threads") if condition["runs"] else None
    names = dict.fromkeys(
        name
        for run in condition["runs"]
        for name in [*run["candidates"], *(run.get("failed") or {})]
    )
    return [
        {
            **shared,
            **dict.fromkeys(("seed", "model_seed", "data_seed"), first + index),
            "threads": threads,
            "status": "crashed",
            "error": str(error),
            "id": f"{pointer}/{index} for {name}",
            "label": f"{condition['model']}/{name}/{first + index}",
            "optimizer": name,
        }
        for index, error in enumerate(condition.get("failed_processes", []))
        for name in names
    ]


def state_rows(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """State created for the shapes of published models, from harness.research.robustness."""
    document = store.read_json(folder / STATE_FILE)
    rows = []
    for number, entry in enumerate(document["model_states"]):
        form = (entry["second_moment"], entry["first_moment_bits"])
        name = FORMS.get(form, f"gefen_{form[0]}_{form[1]}bit")
        pointer = f"/model_states/{number}"
        row: dict[str, Any] = {
            "id": pointer,
            "label": f"{entry['model']}/{name}",
            "status": "done",
            "error": "",
        }
        model = MODELS.get(entry["model"], entry["model"])
        row |= {"optimizer": name, "model": model, "parameters": entry["parameters"]}
        row |= {"optimizer_state_bytes": float(entry["created_bytes"]), "task": "state"}
        row |= {"optimizer_state_predicted_bytes": float(entry["closed_form_bytes"])}
        # Such state is float32 and uint8 whatever the model's dtype, which is bfloat16 there.
        row |= {"precision": "bf16_pure", "device": "meta", "config": {}}
        rows.append({**row, "code_hash": "", "data_hash": ""})
    return rows, {
        "command": "python -m harness.research.robustness --output DIR",
        "title": "State created for the shapes of published models",
    }
