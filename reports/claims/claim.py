"""The types of a claim and of a verdict, and how a verdict is made."""

import re
from dataclasses import dataclass, field
from typing import Any

from reports.data.identity import TOKEN_LOSS
from reports.data.load import StudyData

VERDICTS = ("reproduced", "refuted", "inconclusive", "not tested")
HYPOTHESES = ("not_worse", "better", "same")
ROLES = ("claim", "self-check")


@dataclass(frozen=True)
class Claim:
    """A claim as its YAML file states it; numbers that an estimator does not use stay None.

    `studies` names the folders that the claim is judged from, the preferred one first; none means
    any. `missing` says for a subject what has to exist before it can be tested. `allow_different`
    lists what compared records may differ in (else that refuses them). `role` sets checks of this
    project on itself apart from claims about an optimizer. `task` is whose final loss a claim on
    loss is about: of pretrain or of finetune cells. A claim on final loss has no verdict where the
    loss fell by less than `min_fall` standard deviations between seeds.
    """

    id: str
    title: str
    text: str
    source: str
    estimator: str
    subjects: dict[str, str]
    baseline: str
    role: str = ROLES[0]
    studies: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    baselines: list[str] = field(default_factory=list)
    rivals: list[str] = field(default_factory=list)
    hypothesis: str = "not_worse"
    threshold: float | None = None
    tolerance: float = 0.0
    margin: float | None = None
    alpha: float = 0.05
    power: float = 0.8
    precisions: list[str] = field(default_factory=lambda: ["fp32"])
    beside: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    min_parameters: int = 0
    min_seeds: int = 5
    min_fall: float = 0.0
    task: str = TOKEN_LOSS[0]
    rate_factors: list[float] = field(default_factory=list)
    allow_different: list[str] = field(default_factory=list)
    notes: str = ""


@dataclass(frozen=True)
class Verdict:
    """One answer: what was found, from which cells, in a sentence that stands alone.

    `interval` is (low, high) in `unit`; `interval_kind` says what it is. `parts` holds the
    verdicts of the single conditions (a sequence length, say) behind an overall one. `study` and
    `folder` say where the records lie, `code` names the code hashes of the cells behind it,
    `tested` the models, tokens, precisions and devices of these. `p_refuted` is the p-value of the
    test that refutes; None where nothing was drawn at random.
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
    study: str = ""
    folder: str = ""
    code: tuple[str, ...] = ()
    tested: str = ""
    p_refuted: float | None = None


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
