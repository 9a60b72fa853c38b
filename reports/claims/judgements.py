"""Every claim for every subject over all folders of records: one answer each, others beside it.

Records of different studies are never pooled. The studies that a claim names are asked in its
order; the first that can answer gives the verdict, the answers of the rest stand beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from reports.claims.coverage import sharing
from reports.claims.files import NONE
from reports.claims.judge import Claim, Verdict, judge_one, verdict_frame
from reports.claims.types import ROLES, VERDICTS
from reports.data.sources import Source
from reports.data.text import listed, plural


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
