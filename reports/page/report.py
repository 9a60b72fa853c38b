"""The entry point gefen-report: the records of one study in, its page out."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from reports.claims.claim import Claim, Verdict
from reports.claims.files import claims_folder, load_claims
from reports.claims.judge import evaluate, verdict_frame
from reports.claims.words import verdict_lines, wrapped
from reports.data.load import ReportError, StudyData, each, load
from reports.data.report import Report
from reports.figures.registry import draw_all
from reports.page.output import replacing
from reports.page.page import render, saving
from reports.page.sections import sections
from reports.page.summary import summary_text
from reports.tables.layout import aligned, compact
from reports.tables.registry import all_grids, raw_tables
from reports.tables.runs import failures, summary_view

PAGE = "index.html"
DEFAULT_MARGIN = 0.01  # nats/token, the line in the figure where no claim states a margin
TASKS = {"memory": "Memory and step time", "pretrain": "Training", "finetune": "Fine-tuning"}

REPORT_HELP = """\
examples:
  gefen-report runs/reproduce                    writes runs/reproduce/report/index.html
  gefen-report results/reproduce -o /tmp/report  rebuilds a published report elsewhere

Reads STUDY/study.json and its records (cells/*/record.json, or records.jsonl of a published study),
and needs neither torch nor a GPU.
Writes index.html (one self-contained page), figures as PNG and SVG, tables as CSV in raw units
(bytes, seconds, nats/token), and summary.md, which can be pasted into an issue.
Exit code 0: report written, whatever the verdicts say; 2: the study cannot be read.
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
        folder = options.output or options.study / "report"
        with replacing(folder, "The report") as fresh:
            verdicts, summary = write(data, claims, fresh)
    except ReportError as error:
        return complain(parser.prog, str(error))
    except OSError as error:
        return complain(parser.prog, f"{error.filename or options.study}: {error.strerror}.")
    print(terminal(data, verdicts, summary))
    print(f"\nReport: {folder / PAGE}")
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


def write(
    data: StudyData, claims: dict[str, Claim], folder: Path
) -> tuple[list[Verdict], pd.DataFrame]:
    """Write every file of the report; returns the verdicts and the variants' table."""
    report = Report(data, margin_of(claims, data.study.get("claims", [])))
    drawings = draw_all(report)
    with saving(drawings, folder):
        verdicts = evaluate(data, claims)
        tables = {**raw_tables(report), "verdicts": verdict_frame(verdicts)}
        grids = all_grids(report, tables)
    written = [name for name, frame in tables.items() if not frame.empty]
    for name in written:
        tables[name].to_csv(folder / f"{name}.csv", index=False)
    (folder / "summary.md").write_text(summary_text(data, verdicts, grids), encoding="utf-8")
    page = render(data, verdicts, claims, sections(drawings, grids), written, folder)
    (folder / PAGE).write_text(page, encoding="utf-8")
    return verdicts, tables["summary"]


def margin_of(claims: dict[str, Claim], wanted: Sequence[str]) -> float:
    """The margin, nats/token, of the first claim on loss among those that the study names."""
    judged = [claims[name] for name in wanted if name in claims]
    margins = [
        claim.margin
        for claim in [*judged, *claims.values()]
        if claim.estimator == "paired_loss" and claim.margin is not None
    ]
    return margins[0] if margins else DEFAULT_MARGIN


def terminal(data: StudyData, verdicts: list[Verdict], summary: pd.DataFrame) -> str:
    """The compact tables, what did not finish, and the verdicts."""
    blocks = [str(data.study.get("title") or data.study.get("name"))]
    for task, title in TASKS.items():
        view = summary_view(summary, task)
        if not view.empty:
            words, rest = compact(view)
            blocks.append(f"{title}{': ' if words else ''}{words}\n{aligned(rest)}")
    lines = [
        f"{row.status}: {row.cell}" + (f" ({row.id}) {row.why}" if row.id else "")
        for row in each(failures(data))
    ]
    if lines:
        blocks.append("Not finished\n" + "\n".join(wrapped(line) for line in lines))
    blocks.append(verdict_lines(verdicts))
    return "\n\n".join(blocks)
