"""summary.md: what a person pastes into an issue."""

from collections.abc import Sequence

import pandas as pd

from reports.claims.claim import Verdict
from reports.claims.words import estimate_text
from reports.data.load import StudyData
from reports.data.pairing import short
from reports.data.text import DASH, byte_text
from reports.data.text import listed as enumerated
from reports.tables.layout import markdown
from reports.tables.registry import Grid


def summary_text(data: StudyData, verdicts: list[Verdict], grids: Sequence[Grid]) -> str:
    """GitHub-flavoured Markdown: verdicts, every table that has a brief form, provenance."""
    lines = [f"# {data.study.get('title') or data.study.get('name')}"]
    if data.study.get("demonstration"):
        lines += ["", "**Demonstration**: too small to say anything about loss."]
    if verdicts:
        lines += ["", "## Verdicts", "", markdown(escaped(verdict_view(verdicts)))]
    for grid in grids:
        lines += brief_lines(grid)
    command = str(data.study.get("command") or "not recorded")
    lines += ["", provenance_line(data.runs), "", "```", command, "```"]
    return "\n".join(lines) + "\n"


def brief_lines(grid: Grid) -> list[str]:
    """A table under its title; none where it has no brief form."""
    brief = grid.brief
    if brief is None:
        return []
    columns = list(brief.columns) or [name for name in grid.view.columns if name != "cells"]
    lines = ["", f"## {brief.title}", ""]
    lines.append(markdown(escaped(grid.view[columns].head(brief.most or len(grid.view)))))
    more = len(grid.view) - (brief.most or len(grid.view))
    return [*lines, "", f"and {more} more."] if more > 0 else lines


def verdict_view(verdicts: list[Verdict]) -> pd.DataFrame:
    """One row a verdict: claim, subject, verdict, estimate with its interval, the sentence."""
    rows = [
        {
            "claim": verdict.title or verdict.claim,
            "subject": verdict.subject,
            "verdict": f"**{verdict.verdict}**",
            "estimate": estimate_text(verdict) or DASH,
            "n": verdict.n or DASH,
            "why": verdict.sentence,
        }
        for verdict in verdicts
    ]
    return pd.DataFrame(rows)


def escaped(view: pd.DataFrame) -> pd.DataFrame:
    """Values that keep a Markdown table whole: no bar, no line break."""
    return view.map(lambda value: " ".join(str(value).replace("|", "\\|").split()))


def provenance_line(runs: pd.DataFrame) -> str:
    """Machine, versions and commit on one line."""

    def values(name: str) -> str:
        found = [value for value in runs[name].dropna().unique() if value != ""]
        return enumerated(dict.fromkeys(short(value) for value in found)) or "not recorded"

    torch = {versions.get("torch") for versions in runs["packages"]} - {None}
    memory = [byte_text(value) for value in runs["ram_bytes"].dropna().unique()]
    parts = [
        f"{len(runs)} cells on {values('device')} ({values('cpu_model')}",
        f"{values('cpu_cores')} cores, {enumerated(memory) or 'memory not recorded'})",
        f"torch {enumerated(sorted(torch)) or 'not recorded'}",
        f"commit {values('git_commit')}",
        f"code {values('code_hash')}",
        f"data {values('data_hash')}",
    ]
    return ", ".join(parts) + "."
