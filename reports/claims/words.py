"""Verdicts and claims as lines for a terminal."""

import textwrap

from reports.claims.claim import Claim, Verdict
from reports.data.text import DASH, listed, number_text, signed, with_unit

WIDTH = 100


def estimate_text(verdict: Verdict) -> str:
    """Estimate and interval in the claim's unit; empty where nothing was measured."""
    if verdict.estimate is None:
        return ""
    is_loss = verdict.unit.startswith("nats")
    decimals = 3 if verdict.unit.startswith("bytes per") else 2

    def show(value: float) -> str:
        return signed(value) if is_loss else number_text(value, decimals)

    text = with_unit(show(verdict.estimate), verdict.unit)
    if verdict.interval:
        low, high = (show(bound) for bound in verdict.interval)
        if low != high:
            text += f" ({verdict.interval_kind} {low} to {high})"
    return text


def margin_text(verdict: Verdict) -> str:
    """The margin or threshold as the unit's numbers are shown; a dash where there is none."""
    if verdict.margin is None:
        return DASH
    is_loss = verdict.unit.startswith("nats")
    return number_text(verdict.margin, 3 if is_loss or verdict.margin < 1 else 2)


def verdict_lines(verdicts: list[Verdict], with_cells: bool = False) -> str:
    """Each verdict with its sentence; conditions below it; on request the cells."""
    lines = ["Verdicts"] if verdicts else ["This study names no claim."]
    shown, absent = split_absent(verdicts)
    for verdict in shown:
        lines += one_verdict(verdict, with_cells)
    for sentence, group in absent:
        names = listed(f"{verdict.claim} ({verdict.subject})" for verdict in group)
        lines.append(wrapped(f"{'NOT TESTED':<13}{names}"))
        lines.append(wrapped(sentence, "    "))
    return "\n".join(lines)


def one_verdict(verdict: Verdict, with_cells: bool) -> list[str]:
    """A verdict, its conditions and on request its cells and command."""
    head = f"{verdict.verdict.upper():<13}{verdict.claim} ({verdict.subject})"
    estimate = estimate_text(verdict)
    place = f" [{verdict.tested}]" if verdict.tested else ""
    lines = [wrapped(head + place + (f": {estimate}" if estimate else ""))]
    lines.append(wrapped(verdict.sentence, "    "))
    if len(verdict.parts) > 1:
        for part in verdict.parts:
            lines.append(wrapped(f"- {part.verdict}: {part.sentence}", "    "))
    if with_cells and verdict.cells:
        lines.append(wrapped(f"cells: {' '.join(verdict.cells)}", "    "))
    if with_cells and verdict.command:
        lines.append(wrapped(f"command: {verdict.command}", "    "))
    return lines


def claim_text(claim: Claim) -> str:
    """A claim as a paragraph."""
    subjects = ", ".join(f"{name} ({optimizer})" for name, optimizer in claim.subjects.items())
    studies = f" From: {', '.join(claim.studies)}." if claim.studies else ""
    body = f"{claim.text} Source: {claim.source}. Judged for: {subjects}.{studies}"
    return f"{claim.id}: {claim.title}\n{wrapped(body)}"


def wrapped(text: str, indent: str = "  ") -> str:
    """Text folded at the terminal's width, continuation lines further in."""
    return textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False
    )


def split_absent(verdicts: list[Verdict]) -> tuple[list[Verdict], list[tuple[str, list[Verdict]]]]:
    """Verdicts with content, and those that share one reason for not being tested, together."""
    reasons: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.verdict == "not tested":
            reasons.setdefault(verdict.sentence, []).append(verdict)
    together = [(sentence, group) for sentence, group in reasons.items() if len(group) > 1]
    hidden = {id(verdict) for _, group in together for verdict in group}
    return [verdict for verdict in verdicts if id(verdict) not in hidden], together
