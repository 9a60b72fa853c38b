"""Several conditions (a model, a sequence length) as one verdict that holds them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from reports.claims import Claim, Verdict, answer
from reports.load import StudyData


def overall(
    claim: Claim,
    subject: str,
    data: StudyData,
    parts: tuple[Verdict, ...],
    badness: Callable[[Verdict], float],
) -> Verdict:
    """Reproduced only if all parts are, refuted if any is, else inconclusive or not tested.

    The numbers of the part that is worst for the claim (largest `badness`) stand for all.
    """
    if len(parts) == 1:
        return replace(parts[0], scope="", parts=parts)
    words = [part.verdict for part in parts]
    if "refuted" in words:
        verdict = "refuted"
    elif all(word == words[0] for word in words):
        verdict = words[0]
    else:
        verdict = "inconclusive"
    counts = [f"{word.capitalize()}: {'; '.join(at)}." for word, at in grouped(parts).items()]
    cells = tuple(dict.fromkeys(cell for part in parts for cell in part.cells))
    sentence = f"Over {len(parts)} conditions. {' '.join(counts)}"
    warnings = dict.fromkeys(part.sentence[part.sentence.find("WARNING") :] for part in parts
                             if "WARNING" in part.sentence)  # fmt: skip
    more: dict[str, Any] = {"margin": claim.margin}
    numbers = [part for part in parts if part.estimate is not None]
    if numbers:
        worst = max(numbers, key=badness)
        more = {"estimate": worst.estimate, "interval": worst.interval, "n": worst.n}
        more |= {"interval_kind": f"{worst.interval_kind or 'estimate'}, worst condition"}
        more |= {"unit": worst.unit, "n_of": worst.n_of, "margin": worst.margin}
    return answer(
        claim, subject, data, verdict, " ".join([sentence, *warnings]), cells=cells, parts=parts,
        **more,
    )  # fmt: skip


def grouped(parts: tuple[Verdict, ...]) -> dict[str, list[str]]:
    """Scopes by verdict word, in order of appearance."""
    found: dict[str, list[str]] = {}
    for part in parts:
        found.setdefault(part.verdict, []).append(part.scope)
    return found
