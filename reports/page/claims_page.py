"""The page of all claims: verdicts, and for each number the cells that it was computed from."""

import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from reports.claims.claim import Claim, Verdict
from reports.claims.judge import Judgement, judgement_frame, tally
from reports.claims.words import estimate_text, margin_text
from reports.data.pairing import short
from reports.data.sources import Source
from reports.data.text import DASH, missing
from reports.tables.layout import markdown

PAGE = "index.html"
FACTS = [
    *("optimizer", "model", "seq_len", "precision", "device", "seed", "status", "code_hash"),
    *("optimizer_state_bytes", "peak_first_step_bytes", "peak_steady_step_bytes"),
    *("step_median_seconds", "final_eval_loss"),
]
NAMES = {
    "optimizer_state_bytes": "state, bytes",
    "peak_first_step_bytes": "peak of first step, bytes",
    "peak_steady_step_bytes": "peak of steps, bytes",
    "step_median_seconds": "step, s",
    "final_eval_loss": "final loss, nats/token",
    "code_hash": "code",
    "seq_len": "tokens",
}


def write(
    folder: Path, final: Path, judgements: list[Judgement], sources: Mapping[str, Source]
) -> None:
    """Write index.html, claims.md, claims.csv and cells.csv to `folder`; links start at `final`."""
    judgement_frame(judgements).to_csv(folder / "claims.csv", index=False)
    cells = cell_table(judgements, sources, final)
    cells.drop(columns=["anchor"]).to_csv(folder / "cells.csv", index=False)
    (folder / "claims.md").write_text(markdown_page(judgements, cells), encoding="utf-8")
    (folder / PAGE).write_text(html_page(judgements, cells), encoding="utf-8")


def anchor(study: str, identity: str) -> str:
    """A fragment for a cell that no other cell of any study has."""
    return "cell-" + re.sub(r"[^\w.-]+", "-", f"{study}-{identity}")


def cell_table(
    judgements: list[Judgement], sources: Mapping[str, Source], folder: Path
) -> pd.DataFrame:
    """Every cell behind any verdict: study, id, the path of its record from `folder`, its facts."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for judgement in judgements:
        for verdict in judgement.all:
            source = sources.get(verdict.study)
            known = [key for key in verdict.cells if (verdict.study, key) not in rows]
            if source is None or not known:
                continue
            runs = source.data.runs.set_index("id")
            base = os.path.relpath(source.data.folder, folder).replace(os.sep, "/")
            for identity in known:
                facts = {key: runs[key].get(identity) for key in FACTS if key in runs}
                rows[verdict.study, identity] = {
                    "study": verdict.study,
                    "id": identity,
                    "anchor": anchor(verdict.study, identity),
                    "record": f"{base}/{source.record(identity)}",
                    **facts,
                }
    columns = ["study", "id", "anchor", "record", *FACTS]
    return pd.DataFrame(list(rows.values()), columns=columns)


def glance(judgements: list[Judgement]) -> pd.DataFrame:
    """One row a claim and subject, as people read it."""
    rows = [
        {
            "claim": item.claim.id,
            "subject": item.subject,
            "verdict": item.verdict.verdict,
            "tested on": item.verdict.tested or DASH,
            "estimate": estimate_text(item.verdict) or DASH,
            "asked": margin_text(item.verdict),
            "n": f"{item.verdict.n} {item.verdict.n_of}" if item.verdict.n else DASH,
            "study": item.verdict.study or DASH,
            "kind": item.claim.role + (", shares cells" if item.shared else ""),
        }
        for item in judgements
    ]
    return pd.DataFrame(rows)


def markdown_page(judgements: list[Judgement], cells: pd.DataFrame) -> str:
    """claims.md: a table for an issue, then each verdict with its cells as links."""
    records = {(row["study"], row["id"]): row["record"] for row in cells.to_dict("records")}
    lines = ["# Claims and verdicts", "", tally(judgements), "", markdown(glance(judgements)), ""]
    for item in judgements:
        lines += [f"## {item.claim.title} ({item.subject})", "", item.claim.text, ""]
        lines += [item.shared, ""] if item.shared else []
        for number, verdict in enumerate(item.all):
            lead = f"Other records, {verdict.study}: " if number else ""
            place = f" on {verdict.tested}" if verdict.tested else ""
            lines += [f"{lead}**{verdict.verdict}**{place}. {verdict.sentence}", ""]
            if len(verdict.parts) > 1:
                lines += [f"- {part.verdict}: {part.sentence}" for part in verdict.parts]
                lines.append("")
            if verdict.command:
                lines += [f"Run again: `{verdict.command}`", ""]
            if verdict.cells:
                links = [f"[`{key}`]({records[verdict.study, key]})" for key in verdict.cells]
                head = f"{len(links)} cells of {verdict.study}{code_text(verdict)}"
                lines += [f"<details><summary>{head}</summary>", "", " ".join(links), ""]
                lines += ["</details>", ""]
    return "\n".join(lines).rstrip() + "\n"


def code_text(verdict: Verdict) -> str:
    """The code that the cells ran, as far as their records say it."""
    return f", code {', '.join(verdict.code)}" if verdict.code else ", code not recorded"


def html_page(judgements: list[Judgement], cells: pd.DataFrame) -> str:
    """The page as HTML text, everything inside; its only links outside are to record files."""
    source = resources.files("reports.page").joinpath("templates/claims.html.j2")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"estimate": estimate_text, "margin": margin_text, "code": code_text}
    claims: dict[str, Claim] = {item.claim.id: item.claim for item in judgements}
    groups = {key: [item for item in judgements if item.claim.id == key] for key in claims}
    # Claims with an answer first; a reader looks for those that nothing could test last.
    order = sorted(groups, key=lambda key: all(is_untested(item) for item in groups[key]))
    return environment.from_string(source.read_text(encoding="utf-8")).render(
        claims=claims,
        groups={key: groups[key] for key in order},
        tally=tally(judgements),
        rows=cells.to_dict("records"),
        columns=FACTS,
        names=NAMES,
        show=show,
        anchor=anchor,
    )


def is_untested(item: Judgement) -> bool:
    """Whether no record could answer."""
    return item.verdict.verdict == "not tested"


def show(value: Any) -> str:
    """A fact of a cell as it stands in its record; hashes by their start."""
    if missing(value) or value == "":
        return DASH
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.6g}"
    return short(value)
