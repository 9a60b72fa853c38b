"""The entry point gefen-claims: every claim judged from the records that there are."""

import argparse
import dataclasses
import sys
from pathlib import Path

from reports.claims.claim import Claim
from reports.claims.files import claims_folder, load_claims
from reports.claims.judge import Judgement, evaluate, judge_claims, tally
from reports.claims.words import claim_text, one_verdict, verdict_lines, wrapped
from reports.data.load import ReportError, load
from reports.data.pairing import COMPARED
from reports.data.sources import discover
from reports.data.text import listed
from reports.page import claims_page
from reports.page.output import replacing

HELP = """\
examples:
  gefen-claims                              every claim, from the published records (results/)
  gefen-claims --from results runs/memory   the same with records of your own
  gefen-claims runs/reproduce               the verdicts of one study, with the cells behind each
  gefen-claims --list                       the claims, and where they come from

Verdicts: reproduced, refuted, inconclusive (with the number of seeds it would take), not tested.
Without STUDY it writes index.html, claims.md, claims.csv and cells.csv (-o, default runs/claims).
Exit code 0: judged, whatever the verdicts say; 2: the records or the claims cannot be read.
"""
ALIASES = {"dtype": "precision"}
DEFAULT_OUTPUT = Path("runs") / "claims"


def claims_main(arguments: list[str] | None = None) -> int:
    """gefen-claims: judge claims, print them, and write the page; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        claims = load_claims(options.claims)
        allowed = allowed_keys(options.allow_different)
        claims = {key: allow(claim, allowed) for key, claim in claims.items()}
        if options.list:
            print("\n\n".join(claim_text(claim) for claim in claims.values()))
        elif options.study is not None:
            print(verdict_lines(evaluate(load(options.study), claims), with_cells=True))
        else:
            judge_folders(options, claims)
    except ReportError as error:
        return complain(str(error))
    except OSError as error:
        return complain(f"{error.filename or options.output}: {error.strerror}.")
    return 0


def judge_folders(options: argparse.Namespace, claims: dict[str, Claim]) -> None:
    """Judge every claim from all folders, print the verdicts and write the page."""
    sources = discover(options.folders or [published()])
    judgements = judge_claims(claims, sources, unlisted=bool(options.folders))
    with replacing(options.output, "The page of claims") as fresh:
        claims_page.write(fresh, options.output, judgements, sources)
    print(overview(judgements))
    print(f"\nPage: {options.output / claims_page.PAGE}")


def published() -> Path:
    """results/ of the checkout that holds this package, else of the current folder."""
    beside = Path(__file__).resolve().parents[2] / "results"
    return beside if beside.is_dir() else Path("results")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="gefen-claims",
        description="Verdicts on claims, from records alone.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("study", type=Path, nargs="?", metavar="STUDY", help="judge one study folder only")
    add(
        *("--from", "--folders"),
        dest="folders",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders of studies, or studies (default: results/ of this project)",
    )
    add("-o", "--output", type=Path, default=DEFAULT_OUTPUT, metavar="DIR",
        help="where the page goes (default: runs/claims)")  # fmt: skip
    add("--allow-different", default="", metavar="KEYS",
        help=f"compare records although they differ in these: {', '.join(COMPARED)}")  # fmt: skip
    add("--list", action="store_true", help="print the claims and judge nothing")
    add("--claims", type=Path, default=claims_folder(), metavar="DIR",
        help="folder of claim files (default: configs/claims of this project)")  # fmt: skip
    return found


def allowed_keys(text: str) -> list[str]:
    """The keys of --allow-different. Raises `ReportError` for one that nothing compares by."""
    keys = [ALIASES.get(key.strip(), key.strip()) for key in text.split(",") if key.strip()]
    for key in keys:
        if key not in COMPARED:
            raise ReportError(
                f"--allow-different {key} is not known; allowed are {listed(COMPARED)}."
            )
    return keys


def allow(claim: Claim, keys: list[str]) -> Claim:
    """The claim with these keys added to what compared records may differ in."""
    both = list(dict.fromkeys([*claim.allow_different, *keys]))
    return dataclasses.replace(claim, allow_different=both)


def overview(judgements: list[Judgement]) -> str:
    """Every verdict with its sentence, cells and command; other studies' verdicts in a line."""
    lines = []
    for item in judgements:
        lines += one_verdict(item.verdict, with_cells=True)
        lines += [wrapped(item.shared, "    ")] if item.shared else []
        if item.others:
            words = [f"{other.study}: {other.verdict}" for other in item.others]
            lines.append(wrapped(f"other records, not pooled: {'; '.join(words)}", "    "))
    return "\n".join([*lines, "", tally(judgements)])


def complain(sentence: str) -> int:
    """One sentence on standard error, exit code 2."""
    print(f"gefen-claims: {sentence}", file=sys.stderr)
    return 2
