"""`study.json`: which cells a study has, and what was planned at each look at it."""

from pathlib import Path
from typing import Any

from harness.cells import store
from harness.cells.identity import Cell
from harness.cells.lock import LOCK_FILE, holding
from harness.cells.provenance import utc_now
from harness.errors import writing


def write_study(cells: list[Cell], command: str, looked_utc: str | None = None) -> None:
    """Write or extend `study.json` of each study among the cells.

    `looked_utc` names the command's look at the study (null: now); a search extends its own look.
    """
    looked_utc = looked_utc or utc_now()
    for directory in dict.fromkeys(cell.study_dir for cell in cells):
        members = [cell for cell in cells if cell.study_dir == directory]
        with writing(directory, "The study", "choose another folder with root="):
            directory.mkdir(parents=True, exist_ok=True)
            with holding(directory / LOCK_FILE):  # two commands may extend one study at once
                _write_study(directory, members, command, looked_utc)


def _write_study(directory: Path, members: list[Cell], command: str, looked_utc: str) -> None:
    study = members[0].config.study
    earlier = store.read_study(directory) if (directory / store.STUDY_FILE).exists() else {}
    # A study file lists its own cells; runs from the command line add to those before.
    kept = [] if study.parts else earlier.get("cells", [])
    new = [{"id": c.id, "part": c.config.part, "label": c.label} for c in members]
    listed = {cell["id"]: cell for cell in (*kept, *new)}
    store.write_study(
        directory,
        {
            "name": study.name,
            "title": study.title,
            "description": study.description,
            "demonstration": study.demonstration,
            "claims": study.claims,
            "command": command,
            "created_utc": earlier.get("created_utc", looked_utc),
            "cells": list(listed.values()),
            "looks": looks(earlier, [cell.id for cell in members], set(listed), looked_utc),
            "unlisted_cells": unlisted(directory, set(listed)),
        },
    )


def looks(
    earlier: dict[str, Any], planned: list[str], listed: set[str], looked_utc: str
) -> list[dict[str, Any]]:
    """The looks at a study with this one: `utc` and the ids of the cells planned then.

    Looks are never taken away, so that a seed list that was replaced after its results were seen
    shows. A plan that leaves the cells of the study as they were is no further look; an `earlier`
    file from before looks were kept counts as one.
    """
    found: list[dict[str, Any]] = list(earlier.get("looks", []))
    if not found and earlier.get("cells"):
        cells = [cell["id"] for cell in earlier["cells"]]
        found.append({"utc": earlier.get("created_utc"), "cells": cells})
    if {cell["id"] for cell in earlier.get("cells", [])} == listed:
        return found
    if found and found[-1]["utc"] == looked_utc and set(found[-1]["cells"]) <= set(planned):
        found.pop()  # a search that goes on
    return [*found, {"utc": looked_utc, "cells": planned}]


def unlisted(directory: Path, listed: set[str]) -> list[str]:
    """Cells with a record on disk that the study does not list: reports do not read them."""
    folders = sorted((directory / "cells").glob(f"*/{store.RECORD_FILE}"))
    return [path.parent.name for path in folders if path.parent.name not in listed]
