"""summary.md: what a person pastes into an issue."""

import pandas as pd

from reports.claims.judge import Verdict
from reports.claims.verdict_text import estimate_text
from reports.data.load import StudyData
from reports.data.pairing import short
from reports.data.text import DASH, TIMES, byte_text
from reports.data.text import listed as enumerated
from reports.data.values import capped
from reports.page.sections import Section, labelled
from reports.tables.tables import markdown, summary_view

SPEED = ["optimizer", "task", "model", "seq", "precision", "n", "step ms", "p10 to p90"]
SPEED += ["fwd+bwd ms", "first step ms", f"{TIMES} AdamW", "tokens/s"]
MOST_FAILURES = 20
# Tables of the page that hold the answer of the studies that have them.
ANSWERS = (
    ("Side by side", "rivals", "All optimizers"),
    ("Memory by sequence length", "memory", "By sequence length"),
    ("Fine-tuning", "finetuning", "What it changed"),
    ("Classification over folds", "classification", "Over folds"),
    ("Loss by learning rate", "sensitivity", "By learning rate"),
)


def summary_text(
    data: StudyData, verdicts: list[Verdict], summary: pd.DataFrame, listed: list[Section]
) -> str:
    """GitHub-flavoured Markdown: verdicts, answers, memory, loss, speed, failures, provenance."""
    plain, none = data.runs[~capped(data.runs)], pd.DataFrame()
    first = {section.key: section.grids[0].view for section in listed if section.grids}
    speed = first.get("speed", pd.DataFrame(columns=SPEED))
    failed = first.get("failures", none)
    views = {
        (section.key, grid.title): grid.view.drop(columns="cells", errors="ignore")
        for section in listed
        for grid in section.grids
    }
    tables = {
        "Verdicts": verdict_view(verdicts),
        **{title: views.get((key, name), none) for title, key, name in ANSWERS},
        "Memory": labelled(summary_view(summary, "memory"), plain),
        "Capacity": first.get("capacity", none).drop(columns="cells", errors="ignore"),
        "Loss": labelled(summary_view(summary, "pretrain"), plain),
        "Loss of completions": labelled(summary_view(summary, "finetune"), plain),
        "Speed": speed[SPEED],
        "Not finished": failed.drop(columns="why", errors="ignore").head(MOST_FAILURES),
    }
    lines = [f"# {data.study.get('title') or data.study.get('name')}"]
    if data.study.get("demonstration"):
        lines += ["", "**Demonstration**: too small to say anything about loss."]
    for title, view in tables.items():
        if not view.empty:
            lines += ["", f"## {title}", "", markdown(escaped(view))]
    if len(failed) > MOST_FAILURES:
        lines += ["", f"and {len(failed) - MOST_FAILURES} more that did not finish."]
    command = str(data.study.get("command") or "not recorded")
    lines += ["", provenance_line(data.runs), "", "```", command, "```"]
    return "\n".join(lines) + "\n"


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
