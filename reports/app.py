"""The entry points gefen-report and gefen-claims: records in, conclusions out."""

import argparse
import sys
import textwrap
from pathlib import Path

from reports.claims import (
    Claim,
    Verdict,
    claims_folder,
    evaluate,
    load_claims,
    split_absent,
    verdict_frame,
)
from reports.figures import draw_all
from reports.load import ReportError, StudyData, each, load
from reports.page import estimate_text, png, render
from reports.tables import aligned, compact, markdown, runs_table, summary_table, summary_view
from reports.text import listed

WIDTH = 100
DEFAULT_MARGIN = 0.01  # nats/token, the line in the figure where no claim states a margin
TASKS = {"memory": "Memory and step time", "pretrain": "Training"}

REPORT_HELP = """\
examples:
  gefen-report runs/reproduce                    writes runs/reproduce/report/index.html
  gefen-report results/reproduce -o /tmp/report  rebuilds a published report elsewhere

Reads STUDY/study.json and STUDY/cells/*/record.json, and needs neither torch nor a GPU.
Writes index.html (one self-contained page), figures as PNG and SVG, runs.csv, summary.csv and
verdicts.csv (raw units: bytes, seconds, nats/token) and summary.md.
Exit code 0: report written, whatever the verdicts say; 2: the study cannot be read.
"""
CLAIMS_HELP = """\
examples:
  gefen-claims runs/reproduce   the verdicts of a study, with the cells behind each
  gefen-claims                  the claims that can be judged, and where they come from

Verdicts: reproduced, refuted, inconclusive (with the number of seeds it would take), not tested.
"""


def report_main(arguments: list[str] | None = None) -> int:
    """gefen-report: write the report of one study; returns the exit code."""
    parser = parser_of("gefen-report", "Figures, tables and verdicts from a study.", REPORT_HELP)
    parser.add_argument("study", type=Path, metavar="STUDY", help="study folder (runs/NAME)")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: STUDY/report")
    options = parser.parse_args(arguments)
    try:
        claims = load_claims(options.claims)
        data = load(options.study)
        verdicts = evaluate(data, claims)
        page = write(data, verdicts, claims, options.output or options.study / "report")
    except ReportError as error:
        return complain(parser.prog, str(error))
    except OSError as error:
        return complain(parser.prog, f"{error.filename or options.study}: {error.strerror}.")
    print(terminal(data, verdicts))
    print(f"\nReport: {page}")
    return 0


def claims_main(arguments: list[str] | None = None) -> int:
    """gefen-claims: print the verdicts of a study, or the known claims; returns the exit code."""
    parser = parser_of("gefen-claims", "Verdicts on the published claims.", CLAIMS_HELP)
    parser.add_argument("study", type=Path, nargs="?", metavar="STUDY", help="study folder")
    options = parser.parse_args(arguments)
    try:
        claims = load_claims(options.claims)
        if options.study is None:
            print("\n\n".join(claim_text(claim) for claim in claims.values()))
            return 0
        verdicts = evaluate(load(options.study), claims)
    except ReportError as error:
        return complain(parser.prog, str(error))
    print(verdict_lines(verdicts, with_cells=True))
    return 0


def parser_of(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """The parser that both entry points share."""
    parser = argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--claims",
        type=Path,
        default=claims_folder(),
        metavar="DIR",
        help="folder of claim files (default: configs/claims of this project)",
    )
    return parser


def complain(program: str, sentence: str) -> int:
    """One sentence on standard error, exit code 2."""
    print(f"{program}: {sentence}", file=sys.stderr)
    return 2


def write(data: StudyData, verdicts: list[Verdict], claims: dict[str, Claim], folder: Path) -> Path:
    """Write every file of the report; returns the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    table = runs_table(data.runs)
    summary = summary_table(table)
    margins = [claim.margin for claim in claims.values() if claim.margin is not None]
    drawings = []
    for drawn in draw_all(data, margins[0] if margins else DEFAULT_MARGIN):
        image = png(drawn)
        (folder / f"{drawn.name}.png").write_bytes(image)
        drawn.figure.savefig(folder / f"{drawn.name}.svg", metadata={"Date": None})
        drawings.append((drawn, image))
    table.to_csv(folder / "runs.csv", index=False)
    summary.to_csv(folder / "summary.csv", index=False)
    verdict_frame(verdicts).to_csv(folder / "verdicts.csv", index=False)
    views = [(title, summary_view(summary, task)) for task, title in TASKS.items()]
    text = [f"# {data.study.get('title') or data.study.get('name')}", "", "## Verdicts", ""]
    text += [
        f"- **{verdict.title}** ({verdict.subject}): **{verdict.verdict}**. {verdict.sentence}"
        for verdict in verdicts
    ]
    for title, view in views:
        text += ["", f"## {title}", "", markdown(view)] if not view.empty else []
    (folder / "summary.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    page = folder / "index.html"
    html = render(data, verdicts, claims, drawings, table, summary)
    page.write_text(html, encoding="utf-8")
    return page


def terminal(data: StudyData, verdicts: list[Verdict]) -> str:
    """The compact tables, what did not finish, and the verdicts."""
    summary = summary_table(runs_table(data.runs))
    blocks = [str(data.study.get("title") or data.study.get("name"))]
    for task, title in TASKS.items():
        view = summary_view(summary, task)
        if not view.empty:
            words, rest = compact(view)
            blocks.append(f"{title}{': ' if words else ''}{words}\n{aligned(rest)}")
    failed = data.runs[data.runs["status"] != "done"]
    lines = [f"{row.status}: {row.label} ({row.id}) {row.error or ''}" for row in each(failed)]
    lines += [f"not run yet: {cell.get('label')}" for cell in data.pending]
    if lines:
        blocks.append("Not finished\n" + "\n".join(wrapped(line) for line in lines))
    blocks.append(verdict_lines(verdicts))
    return "\n\n".join(blocks)


def verdict_lines(verdicts: list[Verdict], with_cells: bool = False) -> str:
    """Each verdict with its sentence; conditions below it; on request the cells."""
    lines = ["Verdicts"] if verdicts else ["This study names no claim."]
    shown, absent = split_absent(verdicts)
    for verdict in shown:
        head = f"{verdict.verdict.upper():<13}{verdict.claim} ({verdict.subject})"
        estimate = estimate_text(verdict)
        lines.append(wrapped(head + (f": {estimate}" if estimate else "")))
        lines.append(wrapped(verdict.sentence, "    "))
        if len(verdict.parts) > 1:
            for part in verdict.parts:
                lines.append(wrapped(f"- {part.verdict}: {part.sentence}", "    "))
        if with_cells and verdict.cells:
            lines.append(wrapped(f"cells: {' '.join(verdict.cells)}", "    "))
        if with_cells and verdict.command:
            lines.append(wrapped(f"command: {verdict.command}", "    "))
    for sentence, group in absent:
        names = listed(verdict.claim for verdict in group)
        lines.append(wrapped(f"{'NOT TESTED':<13}{names} ({group[0].subject})"))
        lines.append(wrapped(sentence, "    "))
    return "\n".join(lines)


def claim_text(claim: Claim) -> str:
    """A claim as a paragraph."""
    subjects = ", ".join(f"{name} ({optimizer})" for name, optimizer in claim.subjects.items())
    body = f"{claim.text} Source: {claim.source}. Judged for: {subjects}."
    return f"{claim.id}: {claim.title}\n{wrapped(body)}"


def wrapped(text: str, indent: str = "  ") -> str:
    """Text folded at the terminal's width, continuation lines further in."""
    return textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False
    )
