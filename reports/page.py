"""One self-contained page: verdicts, figures, tables, provenance, all inside the file."""

import base64
import io
import multiprocessing
import os
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from reports.claims import Claim, Verdict, split_absent
from reports.figures import Drawn
from reports.layout import narrow
from reports.load import ReportError, StudyData
from reports.pairing import short
from reports.sections import Grid, Section
from reports.text import byte_text
from reports.verdict_text import estimate_text

DPI = 180
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
    """The figure as PNG bytes, sharp at half a page and on dense screens."""
    buffer = io.BytesIO()
    drawn.figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def saved(drawings: Sequence[Drawn], folder: Path) -> dict[str, bytes]:
    """Write each figure as PNG and SVG to `folder`; the PNG bytes by name.

    Rendering is most of a report's time, so on Linux processors share the figures: a forked
    process has them already. Raises `ReportError` where one of these ends before its figures.
    """
    shares = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    fork = multiprocessing.get_context("fork") if shares > 1 else None
    helpers = []
    for share in range(1, shares if fork else 1):
        assert fork is not None
        helper = fork.Process(target=save, args=(drawings[share::shares], folder))
        helper.start()
        helpers.append(helper)
    save(drawings[::shares], folder)
    for helper in helpers:
        helper.join()
        if helper.exitcode:
            raise ReportError(f"A process that draws figures ended with code {helper.exitcode}.")
    return {drawn.name: (folder / f"{drawn.name}.png").read_bytes() for drawn in drawings}


def save(drawings: Sequence[Drawn], folder: Path) -> None:
    """Write figures as PNG and SVG."""
    for drawn in drawings:
        (folder / f"{drawn.name}.png").write_bytes(png(drawn))
        with narrow():
            drawn.figure.savefig(folder / f"{drawn.name}.svg", metadata={"Date": None})


def data_uri(image: bytes) -> str:
    """PNG bytes as a data URI."""
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def rows_of(grid: Grid) -> dict[str, Any]:
    """A table for the template: header and rows; with `anchors` each row is a link's target."""
    view = grid.view
    ids = list(view["id"]) if grid.anchors else [""] * len(view)
    body = [[str(value) for value in row] for row in view.to_numpy()]
    return {
        "title": grid.title,
        "note": grid.note,
        "folded": grid.folded,
        "columns": list(view.columns),
        "rows": list(zip(ids, body, strict=True)),
    }


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


def render(
    data: StudyData,
    verdicts: list[Verdict],
    claims: dict[str, Claim],
    listed: list[Section],
    images: dict[str, bytes],
) -> str:
    """The whole page as HTML text; `images` holds the PNG bytes of each figure by its name."""
    source = resources.files("reports").joinpath("templates/page.html.j2")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"estimate": estimate_text, "short": short}
    shown, absent = split_absent(verdicts)
    contents = [("verdicts", "Verdicts")] if verdicts else []
    contents += [(section.key, section.title) for section in listed]
    return environment.from_string(source.read_text(encoding="utf-8")).render(
        study=data.study,
        title=data.study.get("title") or data.study.get("name", "study"),
        verdicts=shown,
        absent=absent,
        claims=[claim for name, claim in claims.items() if is_judged(name, verdicts)],
        contents=[*contents, ("how", "How it was measured"), ("provenance", "Provenance")],
        sections=[
            {
                "key": section.key,
                "title": section.title,
                "drawings": [(drawn, data_uri(images[drawn.name])) for drawn in section.drawings],
                "grids": [rows_of(grid) for grid in section.grids],
            }
            for section in listed
        ],
        tasks=set(data.runs["task"]),
        devices=set(data.runs["device"]),
        provenance=provenance(data.runs),
        known=set(data.runs["id"]),
        dates=(min(data.runs["started_utc"]), max(data.runs["finished_utc"])),
    )


def is_judged(claim: str, verdicts: list[Verdict]) -> bool:
    """Whether a verdict of the page answers this claim."""
    return any(verdict.claim == claim for verdict in verdicts)
