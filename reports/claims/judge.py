"""Claims judged for each subject from the records of one study."""

import re
from dataclasses import replace
from typing import Any

import pandas as pd

from reports.claims.coverage import looked_at, tested_on
from reports.claims.files import NONE, claims_folder, load_claims
from reports.claims.types import VERDICTS, Claim, Estimator, Verdict
from reports.data.load import StudyData
from reports.data.pairing import short

__all__ = [
    "VERDICTS",
    "Claim",
    "Estimator",
    "Verdict",
    "answer",
    "claims_folder",
    "estimators",
    "evaluate",
    "judge_one",
    "load_claims",
    "split_absent",
    "verdict_frame",
]


def estimators() -> dict[str, Estimator]:
    """The estimators by name; imported here because they build on this module."""
    from reports.claims import capacity, loss, memory, peak, stated, time, training

    return {
        "state_ratio": memory.state_ratio,
        "state_saving": memory.state_saving,
        "state_per_parameter": memory.state_per_parameter,
        "stated_state": stated.stated_state,
        "lowest_peak": peak.lowest_peak,
        "paired_loss": loss.paired_loss,
        "rate_transfer": loss.rate_transfer,
        "step_time": time.step_time,
        "capacity": capacity.capacity,
        "loss_spikes": training.loss_spikes,
        "tokens_to_target": training.tokens_to_target,
        "wrong_rate": training.wrong_rate,
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
        verdicts += [judge_one(claim, subject, data) for subject in claim.subjects]
    return verdicts


def judge_one(claim: Claim, subject: str, data: StudyData) -> Verdict:
    """The verdict of one claim for one subject from one study."""
    optimizer = claim.subjects[subject]
    if claim.estimator == NONE:
        return answer(claim, subject, data, "not tested", claim.missing[subject])
    if not (data.runs["optimizer"] == optimizer).any():
        sentence = f"No cell of this study ran the optimizer {optimizer}."
        return answer(claim, subject, data, "not tested", sentence)
    found = estimators()[claim.estimator](claim, subject, optimizer, data)
    behind = data.runs[data.runs["id"].isin(found.cells)]
    codes = dict.fromkeys(short(code) for code in behind["code_hash"] if code)
    seen = looked_at(data.study) if found.verdict != "not tested" else ""
    sentence = " ".join(filter(None, [found.sentence, seen]))
    return replace(found, sentence=sentence, code=tuple(codes), tested=tested_on(behind))


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
        command=again(str(data.study.get("command") or "")),
        study=str(data.study.get("name") or data.folder.name),
        folder=str(data.folder),
        **more,
    )


def again(command: str) -> str:
    """The command for another machine: without where records went and how they were tracked."""
    return re.sub(r" (?:root|tracker|tracker\.\w+)=\S+", "", command)


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
    """Verdicts and their parts as rows, for verdicts.csv and claims.csv."""
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
                    "p_refuted": item.p_refuted,
                    "unit": item.unit,
                    "n": item.n,
                    "n_of": item.n_of,
                    "cells": " ".join(item.cells),
                    "sentence": item.sentence,
                    "command": item.command,
                    "study": item.study,
                    "code": " ".join(verdict.code),
                    "tested": verdict.tested,
                }
            )
    return pd.DataFrame(rows)
