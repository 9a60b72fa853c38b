"""Claims from YAML, each judged for each subject from the records of one study."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from reports.load import ReportError, StudyData, one_line

VERDICTS = ("reproduced", "refuted", "inconclusive", "not tested")


@dataclass(frozen=True)
class Claim:
    """A claim as its YAML file states it; numbers that an estimator does not use stay None."""

    id: str
    title: str
    text: str
    source: str
    estimator: str
    subjects: dict[str, str]
    baseline: str
    threshold: float | None = None
    tolerance: float = 0.0
    margin: float | None = None
    alpha: float = 0.05
    power: float = 0.8
    precisions: list[str] = field(default_factory=lambda: ["fp32"])
    beside: list[str] = field(default_factory=list)
    min_parameters: int = 0
    min_seeds: int = 5
    notes: str = ""


@dataclass(frozen=True)
class Verdict:
    """One answer: what was found, from which cells, in a sentence that stands alone.

    `interval` is (low, high) in `unit`; `interval_kind` says what it is. `parts` holds the
    verdicts of the single conditions (a sequence length, say) behind an overall one.
    """

    claim: str
    subject: str
    verdict: str
    sentence: str
    title: str = ""
    source: str = ""
    scope: str = ""
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    interval_kind: str = ""
    margin: float | None = None
    unit: str = ""
    n: int = 0
    n_of: str = "paired seeds"
    cells: tuple[str, ...] = ()
    command: str = ""
    parts: tuple["Verdict", ...] = ()


Estimator = Callable[[Claim, str, str, StudyData], Verdict]


def claims_folder() -> Path:
    """configs/claims beside the package, in a checkout and in an installed wheel alike."""
    return Path(__file__).resolve().parent.parent / "configs" / "claims"


def load_claims(folder: Path) -> dict[str, Claim]:
    """Every claim in `folder` by id. Raises `ReportError` that names the file and the key."""
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise ReportError(f"{folder} holds no claim (*.yaml).")
    claims = [read_claim(path) for path in paths]
    return {claim.id: claim for claim in claims}


def read_claim(path: Path) -> Claim:
    """One YAML file as a `Claim`."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ReportError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise ReportError(f"{path} holds no mapping of keys to values.")
    known = [item.name for item in fields(Claim)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ReportError(f"{path} has the unknown key {unknown[0]!r}; known: {', '.join(known)}.")
    absent = [name for name in known[:7] if name not in values]
    if absent:
        raise ReportError(f"{path} lacks the key {absent[0]!r}.")
    allowed = estimators()
    if values["estimator"] not in allowed:
        names = ", ".join(sorted(allowed))
        raise ReportError(f"{path} has estimator {values['estimator']!r}; known: {names}.")
    return Claim(**values)


def estimators() -> dict[str, Estimator]:
    """The estimators by name; imported here because they build on `Claim` and `Verdict`."""
    from reports import loss_claims, memory_claims

    return {
        "state_ratio": memory_claims.state_ratio,
        "state_saving": memory_claims.state_saving,
        "paired_loss": loss_claims.paired_loss,
    }


def evaluate(data: StudyData, claims: dict[str, Claim]) -> list[Verdict]:
    """A verdict for each claim that the study lists (all where it has no list) and subject."""
    wanted: list[str] = data.study.get("claims", list(claims))
    verdicts: list[Verdict] = []
    for name in wanted:
        if name not in claims:
            sentence = f"The study names the claim {name!r}, which no file in configs/claims holds."
            verdicts.append(Verdict(name, "", "not tested", sentence, title=name))
            continue
        claim = claims[name]
        estimator = estimators()[claim.estimator]
        for subject, optimizer in claim.subjects.items():
            if (data.runs["optimizer"] == optimizer).any():
                verdicts.append(estimator(claim, subject, optimizer, data))
            else:
                sentence = f"No cell of this study ran the optimizer {optimizer}."
                verdicts.append(answer(claim, subject, data, "not tested", sentence))
    return verdicts


def answer(
    claim: Claim, subject: str, data: StudyData, verdict: str, sentence: str, **more: Any
) -> Verdict:
    """A `Verdict` that carries the claim's title and source and the study's command."""
    if verdict not in VERDICTS:
        raise ValueError(f"verdict={verdict!r}; allowed are {', '.join(VERDICTS)}.")
    return Verdict(
        claim.id,
        subject,
        verdict,
        sentence,
        title=claim.title,
        source=claim.source,
        command=str(data.study.get("command") or ""),
        **more,
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


def verdict_frame(verdicts: list[Verdict]) -> pd.DataFrame:
    """Verdicts and their parts as rows, for verdicts.csv."""
    rows = []
    for verdict in verdicts:
        for item in (verdict, *verdict.parts):
            low, high = item.interval or (None, None)
            rows.append(
                {
                    "claim": item.claim,
                    "subject": item.subject,
                    "scope": item.scope or "overall",
                    "verdict": item.verdict,
                    "estimate": item.estimate,
                    "low": low,
                    "high": high,
                    "interval": item.interval_kind,
                    "margin": item.margin,
                    "unit": item.unit,
                    "n": item.n,
                    "n_of": item.n_of,
                    "cells": " ".join(item.cells),
                    "sentence": item.sentence,
                    "command": item.command,
                }
            )
    return pd.DataFrame(rows)
