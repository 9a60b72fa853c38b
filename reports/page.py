"""One self-contained page: verdicts, figures, tables, provenance, all inside the file."""

import base64
import io
from importlib import resources
from typing import Any

import jinja2
import pandas as pd

from reports.claims import Claim, Verdict, split_absent
from reports.figures import Drawn
from reports.load import StudyData, each
from reports.pairing import short
from reports.style import styles
from reports.tables import memory_view, summary_view, training_view
from reports.text import byte_text, number_text, signed, with_unit

PROVENANCE = {
    "device": "Device",
    "device_name": "Device name",
    "cpu_model": "CPU",
    "cpu_cores": "CPU cores",
    "threads": "Threads",
    "ram_bytes": "Memory of the machine",
    "os": "System",
    "python": "Python",
    "git_commit": "Commit",
    "git_dirty": "Uncommitted changes",
    "code_hash": "Code hash",
    "data_hash": "Data hash",
}


def png(drawn: Drawn) -> bytes:
    """The figure as PNG bytes, sharp enough for print at full page width."""
    buffer = io.BytesIO()
    drawn.figure.savefig(buffer, format="png", dpi=144)
    drawn.figure.set_layout_engine("none")  # placed once: the SVG that follows is the same layout
    return buffer.getvalue()


def data_uri(image: bytes) -> str:
    """PNG bytes as a data URI."""
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def estimate_text(verdict: Verdict) -> str:
    """Estimate and interval in the claim's unit; empty where nothing was measured."""
    if verdict.estimate is None:
        return ""
    is_loss = verdict.unit.startswith("nats")

    def show(value: float) -> str:
        return signed(value) if is_loss else number_text(value, 2)

    text = with_unit(show(verdict.estimate), verdict.unit)
    if verdict.interval:
        low, high = (show(bound) for bound in verdict.interval)
        if low != high:
            text += f" ({verdict.interval_kind} {low} to {high})"
    return text


def rows_of(view: pd.DataFrame, anchors: bool = False) -> dict[str, Any]:
    """A view for the template: header and rows; `anchors` makes each row a link target."""
    ids = list(view["id"]) if anchors and not view.empty else [""] * len(view)
    body = [[str(value) for value in row] for row in view.to_numpy()]
    return {"columns": list(view.columns), "rows": list(zip(ids, body, strict=True))}


def labelled(view: pd.DataFrame, labels: dict[str, str]) -> pd.DataFrame:
    """A view with optimizers by their display label."""
    return view if view.empty else view.assign(optimizer=view["optimizer"].map(labels))


def provenance(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Each fact with all the values that occur in the study, most frequent first."""
    facts = []
    for key, label in PROVENANCE.items():
        values = [value for value in runs[key].value_counts().index if value != ""]
        if key == "ram_bytes":
            values = [byte_text(value) for value in values]
        facts.append((label, "; ".join(dict.fromkeys(map(str, values))) or "not recorded"))
    packages: dict[str, list[str]] = {}
    for versions in runs["packages"]:
        for name, version in versions.items():
            if version and version not in packages.setdefault(name, []):
                packages[name].append(version)
    text = ", ".join(f"{name} {' / '.join(found)}" for name, found in sorted(packages.items()))
    return [*facts, ("Packages", text or "not recorded")]


def failures(data: StudyData) -> list[dict[str, Any]]:
    """Cells that did not finish, and planned cells without a record."""
    failed = data.runs[data.runs["status"] != "done"]
    rows = [
        {"id": row.id, "label": row.label, "status": row.status, "error": row.error or ""}
        for row in each(failed)
    ]
    rest = [
        {"id": cell.get("id"), "label": cell.get("label", ""), "status": "not run yet", "error": ""}
        for cell in data.pending
    ]
    return [*rows, *rest]


def render(
    data: StudyData,
    verdicts: list[Verdict],
    claims: dict[str, Claim],
    drawings: list[tuple[Drawn, bytes]],
    table: pd.DataFrame,
    summary: pd.DataFrame,
) -> str:
    """The whole page as HTML text; `drawings` pairs each figure with its PNG bytes."""
    source = resources.files("reports").joinpath("templates/page.html.j2")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"estimate": estimate_text, "short": short}
    shown, absent = split_absent(verdicts)
    labels = {name: style.label for name, style in styles(data.runs).items()}
    tasks = {"memory": "Memory and step time", "pretrain": "Training"}
    summaries = {
        title: rows_of(labelled(summary_view(summary, task, cells=True), labels))
        for task, title in tasks.items()
    }
    every = {
        "Memory cells": rows_of(labelled(memory_view(table), labels), anchors=True),
        "Training cells": rows_of(labelled(training_view(table), labels), anchors=True),
    }
    return environment.from_string(source.read_text(encoding="utf-8")).render(
        study=data.study,
        title=data.study.get("title") or data.study.get("name", "study"),
        verdicts=shown,
        absent=absent,
        claims=claims,
        drawings=[(drawn, data_uri(image)) for drawn, image in drawings],
        summaries={key: value for key, value in summaries.items() if value["rows"]},
        tables={key: value for key, value in every.items() if value["rows"]},
        tasks=set(data.runs["task"]),
        devices=set(data.runs["device"]),
        provenance=provenance(data.runs),
        failures=failures(data),
        known=set(data.runs["id"]),
        dates=(min(data.runs["started_utc"]), max(data.runs["finished_utc"])),
    )
