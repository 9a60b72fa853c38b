"""Claims judged from the records of one study, or of many: one answer for each subject.

Records of different studies are never pooled. Over many studies those that a claim names are asked
in its order; the first that can answer gives the verdict, the answers of the rest stand beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from reports.claims.claim import ROLES, VERDICTS, Claim, Verdict, answer
from reports.claims.files import NONE
from reports.claims.registry import all_estimators
from reports.data.identity import TOKEN_LOSS
from reports.data.load import StudyData
from reports.data.pairing import short
from reports.data.sources import Source
from reports.data.text import listed, missing, plural

ASPECTS = (
    ("model", "{}"),
    ("seq_len", "{} tokens"),
    ("planned_steps", "{} training steps"),
    ("precision", "{}"),
    ("device", "{}"),
)


@dataclass(frozen=True)
class Judgement:
    """The verdict on one claim for one subject, and what other studies say."""

    claim: Claim
    subject: str
    verdict: Verdict
    others: tuple[Verdict, ...] = ()
    shared: str = ""

    @property
    def all(self) -> tuple[Verdict, ...]:
        """The verdict first, then the others."""
        return (self.verdict, *self.others)


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
    found = all_estimators()[claim.estimator](claim, subject, optimizer, data)
    behind = data.runs[data.runs["id"].isin(found.cells)]
    codes = dict.fromkeys(short(code) for code in behind["code_hash"] if code)
    seen = looked_at(data.study) if found.verdict != "not tested" else ""
    sentence = " ".join(filter(None, [found.sentence, seen]))
    return replace(found, sentence=sentence, code=tuple(codes), tested=tested_on(behind))


def looked_at(study: Mapping[str, Any]) -> str:
    """Whether the study's plan changed after its first look, and what it left behind; "" if not.

    A plan that changes after results were seen can be bent towards them; error rates hold for plans
    made once.
    """
    looks, left = study.get("looks", []), study.get("unlisted_cells", [])
    found = []
    if len(looks) > 1:
        dates = listed(dict.fromkeys(str(look.get("utc") or "unknown")[:10] for look in looks))
        found.append(f"The study was planned {len(looks)} times ({dates}).")
    if left:
        found.append(f"{plural(len(left), 'recorded cell')} outside its plan not counted.")
    return " ".join(found)


def tested_on(cells: pd.DataFrame) -> str:
    """Models, sequence lengths, training steps, precisions and devices of these cells."""
    found = []
    trained = cells["task"].isin(TOKEN_LOSS).all()
    for column, form in ASPECTS:
        if column not in cells or (column == "planned_steps" and not trained):
            continue
        values = [value for value in cells[column].unique() if not missing(value) and value != ""]
        if values:
            found.append(form.format(listed(sorted(map(number, values), key=order))))
    return ", ".join(found)


def number(value: Any) -> Any:
    """A whole number without its fraction."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def order(value: Any) -> tuple[bool, Any]:
    """Numbers by size, then names."""
    return (isinstance(value, str), value)


def judge_claims(
    claims: Mapping[str, Claim], sources: Mapping[str, Source], unlisted: bool = False
) -> list[Judgement]:
    """Judge each claim for each of its subjects.

    `unlisted` also asks folders that the claim does not name, after those that it does.
    """
    found = []
    for claim in claims.values():
        names = [name for name in claim.studies if name in sources]
        if unlisted or not claim.studies:
            names += [name for name in sources if name not in names]
        asked = [sources[name] for name in names]
        found += [judge_subject(claim, subject, asked) for subject in claim.subjects]
    verdicts = [(item.claim.id, item.verdict.study, item.verdict.cells) for item in found]
    return [
        replace(item, shared=shared) for item, shared in zip(found, sharing(verdicts), strict=True)
    ]


def judge_subject(claim: Claim, subject: str, asked: list[Source]) -> Judgement:
    """One claim for one subject, from the sources in the order of preference."""
    optimizer = claim.subjects[subject]
    verdicts = [
        judge_one(claim, subject, source.data)
        for source in asked
        if claim.estimator != NONE and (source.data.runs["optimizer"] == optimizer).any()
    ]
    if not verdicts:
        return Judgement(claim, subject, untested(claim, subject, asked))
    answered = [verdict for verdict in verdicts if verdict.verdict != "not tested"]
    chosen = (answered or verdicts)[0]
    # A folder that the claim does not name and that cannot answer has nothing to say about it.
    others = tuple(
        verdict
        for verdict in verdicts
        if verdict is not chosen
        and (verdict.verdict != "not tested" or verdict.study in claim.studies)
    )
    skipped = [verdict.study for verdict in verdicts[: verdicts.index(chosen)]]
    if skipped:
        note = f"Records of {listed(skipped)} come first but cannot answer; see beside it."
        chosen = replace(chosen, sentence=f"{chosen.sentence} {note}")
    if not answered:  # its own command ran something that could not answer
        sentence = " ".join(filter(None, [chosen.sentence, claim.missing.get(subject, "")]))
        chosen = replace(chosen, sentence=sentence, command=chosen.command if chosen.cells else "")
    return Judgement(claim, subject, chosen, others)


def untested(claim: Claim, subject: str, asked: list[Source]) -> Verdict:
    """The answer where no record is about this subject: what is missing, and what would help."""
    optimizer, missing = claim.subjects[subject], claim.missing.get(subject, "")
    where = f" in {listed(source.name for source in asked)}" if asked else ""
    sentence = "" if claim.estimator == NONE else f"No record{where} is about {optimizer}."
    command = ""
    if not missing and claim.studies:
        command = f"gefen-bench study={claim.studies[0]}"
    return Verdict(
        claim.id,
        subject,
        "not tested",
        " ".join(filter(None, [sentence, missing])),
        title=claim.title,
        source=claim.source,
        command=command,
    )


def sharing(behind: Sequence[tuple[str, str, Sequence[str]]]) -> list[str]:
    """For each verdict, the sentence that names claims with cells of its own; "" if none.

    Each verdict is given as claim, study and cells. Verdicts of one claim (for several subjects)
    share a baseline by design and are not named. Answers from the same data agree or disagree
    together: they are not evidence for each other.
    """
    said = []
    for claim, study, cells in behind:
        counts: dict[str, int] = {}
        for other, where, theirs in behind:
            common = len({*cells} & {*theirs}) if where == study and other != claim else 0
            if common:
                counts[other] = max(common, counts.get(other, 0))
        names = listed(f"{name} ({count})" for name, count in counts.items())
        whole = f"Of its {len(cells)} cells some stand behind other claims too: {names}."
        said.append(f"{whole} Not independent evidence." if counts else "")
    return said


def tally(judgements: Sequence[Judgement]) -> str:
    """Verdicts by word; checks of this project on itself are counted apart from claims."""
    said = []
    for role, noun in zip(ROLES, ("verdict", "self-check"), strict=True):
        words = [item.verdict.verdict for item in judgements if item.claim.role == role]
        counts = [f"{words.count(word)} {word}" for word in VERDICTS if word in words]
        said += [f"{plural(len(words), noun)}: {', '.join(counts)}."] if words else []
    together = sum(bool(item.shared) for item in judgements)
    said += [f"{together} of them share cells with another claim."] if together else []
    return " ".join(said)


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


def judgement_frame(judgements: list[Judgement]) -> pd.DataFrame:
    """claims.csv: rows of every verdict and its conditions; `role` sets the others apart."""
    frames = []
    for judgement in judgements:
        for number, verdict in enumerate(judgement.all):
            rows = verdict_frame([verdict])
            role = "other records" if number else "verdict"
            shared = "" if number else judgement.shared
            frames.append(
                rows.assign(
                    role=role, folder=verdict.folder, kind=judgement.claim.role, shared=shared
                )
            )
    return pd.concat(frames, ignore_index=True)
