"""One self-contained page: verdicts, figures, tables, provenance, all inside the file."""

import base64
import contextlib
import io
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import resources
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from reports.claims.claim import Claim, Verdict
from reports.claims.words import estimate_text, split_absent
from reports.data.load import ReportError, StudyData
from reports.data.pairing import short
from reports.data.text import byte_text
from reports.figures.layout import narrow
from reports.figures.registry import Drawn
from reports.page.sections import Filled
from reports.tables.registry import Grid

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


@contextlib.contextmanager
def saving(drawings: Sequence[Drawn], folder: Path) -> Iterator[None]:
    """Draw each figure and write it as PNG and SVG to `folder` while the caller does other work.

    Figures are most of a report's time, so on Linux one forked process a core, which has the data
    already, draws its share of them; elsewhere all are drawn first. Raises `ReportError` at the end
    where one of these processes ended before its figures.
    """
    shares = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if shares == 1:
        save(drawings, folder)
        yield
        return
    fork = multiprocessing.get_context("fork")
    refused = fork.SimpleQueue()
    helpers = [
        fork.Process(target=_share, args=(drawings[share::shares], folder, refused), daemon=True)
        for share in range(shares)
    ]
    for helper in helpers:
        helper.start()
    yield
    for helper in helpers:
        helper.join()
        if helper.exitcode:
            raise ReportError(f"A process that draws figures ended with code {helper.exitcode}.")
    if not refused.empty():
        raise OSError(*refused.get(), str(folder))


def _share(
    drawings: Sequence[Drawn], folder: Path, refused: "SimpleQueue[tuple[int | None, str]]"
) -> None:
    """`save` in a process of its own, which tells what the file system refuses."""
    try:
        save(drawings, folder)
    except OSError as error:
        refused.put((error.errno, error.strerror or str(error)))


def save(drawings: Sequence[Drawn], folder: Path) -> None:
    """Write figures as PNG and SVG."""
    for drawn in drawings:
        write_png(drawn.figure, folder / f"{drawn.name}.png")
        with narrow():
            drawn.figure.savefig(folder / f"{drawn.name}.svg", metadata={"Date": None})


def write_png(figure: Figure, path: Path) -> None:
    """A figure, sharp at half a page and on dense screens, in a palette: a third of the bytes."""
    exact = io.BytesIO()
    figure.savefig(exact, format="png", dpi=DPI, pil_kwargs={"compress_level": 0})
    # The few hues of a figure and their blends with white fit; dithering would put noise into them.
    image = Image.open(exact).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(path, format="png")


def data_uri(image: Path) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode("ascii")


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
    listed: list[Filled],
    tables: Sequence[str],
    folder: Path,
) -> str:
    """The page as HTML text, with the figures saved to `folder`; `tables` names the CSV files."""
    source = resources.files("reports.page").joinpath("templates/page.html.j2")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"estimate": estimate_text, "short": short}
    shown, absent = split_absent(verdicts)
    contents = [("verdicts", "Verdicts")] if verdicts else []
    contents += [(filled.section.key, filled.section.title) for filled in listed]
    return environment.from_string(source.read_text(encoding="utf-8")).render(
        study=data.study,
        title=data.study.get("title") or data.study.get("name", "study"),
        verdicts=shown,
        absent=absent,
        claims=[claim for name, claim in claims.items() if is_judged(name, verdicts)],
        contents=[*contents, ("how", "How it was measured"), ("provenance", "Provenance")],
        sections=[
            {
                "key": filled.section.key,
                "title": filled.section.title,
                "drawings": [
                    (drawn, data_uri(folder / f"{drawn.name}.png")) for drawn in filled.drawings
                ],
                "grids": [rows_of(grid) for grid in filled.grids],
            }
            for filled in listed
        ],
        tables=[f"{name}.csv" for name in tables],
        tasks=set(data.runs["task"]),
        devices=set(data.runs["device"]),
        provenance=provenance(data.runs),
        known=set(data.runs["id"]),
        dates=(min(data.runs["started_utc"]), max(data.runs["finished_utc"])),
    )


def is_judged(claim: str, verdicts: list[Verdict]) -> bool:
    """Whether a verdict of the page answers this claim."""
    return any(verdict.claim == claim for verdict in verdicts)
