"""One verdict over several conditions (models, sequence lengths): reproduced only if all are."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from reports.claims.claim import Claim, Verdict, answer
from reports.data.load import StudyData

Badness = Callable[[Verdict], float]


def overall(
    claim: Claim,
    subject: str,
    data: StudyData,
    parts: tuple[Verdict, ...],
    badness: Badness,
    refuting: Badness | None = None,
    alpha: float | None = None,
) -> Verdict:
    """Reproduced only if all parts are; refuted if one is at `alpha` shared by the parts.

    Of the parts that carry the overall verdict, the numbers of the worst for the claim stand for
    all: that with the largest `badness`, of refuting ones the largest `refuting`. `alpha` is that
    of one part alone (default: the claim's).
    """
    if len(parts) == 1:
        return replace(parts[0], scope="", parts=parts)
    alpha = claim.alpha if alpha is None else alpha
    verdict = together([(part.verdict, part.p_refuted) for part in parts], alpha)
    counts = [f"{word.capitalize()}: {'; '.join(at)}." for word, at in grouped(parts).items()]
    said = [f"Over {len(parts)} conditions.", *counts, shared_error(parts, alpha)]
    if verdict == "inconclusive" and any("power to" in part.sentence for part in parts):
        said.append(f"Numbers to reproduce are for {claim.power:.0%} power over all conditions.")
    cells = tuple(dict.fromkeys(cell for part in parts for cell in part.cells))
    said += dict.fromkeys(part.sentence[part.sentence.find("WARNING") :] for part in parts
                          if "WARNING" in part.sentence)  # fmt: skip
    more: dict[str, Any] = {"margin": claim.margin}
    rank = (refuting or badness) if verdict == "refuted" else badness
    worst = most(carriers(parts, verdict, alpha), rank)
    if worst is not None:
        more = {"estimate": worst.estimate, "interval": worst.interval, "n": worst.n}
        more |= {"interval_kind": f"{worst.interval_kind or 'estimate'}, worst condition"}
        more |= {"unit": worst.unit, "n_of": worst.n_of, "margin": worst.margin}
        more |= {"p_refuted": worst.p_refuted}
    return answer(
        claim, subject, data, verdict, " ".join(filter(None, said)), cells=cells, parts=parts,
        **more,
    )  # fmt: skip


def together(parts: Sequence[tuple[str, float | None]], alpha: float) -> str:
    """The overall word of conditions, each given as its own word and the p-value that refutes it.

    "Reproduced" asks for all of them, which needs no correction. "Refuted" asks for any, so each
    is held to `alpha` divided by the number of conditions tested (Bonferroni): with every truth on
    its margin, P(refuted) is at most `alpha`. A p-value of None is that of an exact comparison.
    """
    words = [word for word, _ in parts]
    if any(word == "refuted" and holds(p, alpha, words) for word, p in parts):
        return "refuted"
    if "refuted" not in words and len(set(words)) == 1:
        return words[0]
    return "inconclusive"


def holds(p: float | None, alpha: float, words: Sequence[str]) -> bool:
    """Whether a condition that is refuted alone refutes the whole."""
    return p is None or p < alpha / sum(word != "not tested" for word in words)


def shared_error(parts: Sequence[Verdict], alpha: float) -> str:
    """The sentence that says how refutation was judged over several tests; "" without one."""
    words = [part.verdict for part in parts]
    count = sum(word != "not tested" for word in words)
    drawn = [part for part in parts if part.verdict == "refuted" and part.p_refuted is not None]
    if not drawn or count < 2:
        return ""
    at = [part.scope for part in drawn if holds(part.p_refuted, alpha, words)]
    head = f"Each condition's own word is at {alpha:g}; the whole is refuted at {alpha:g}/{count}"
    return f"{head}, reached by {'; '.join(at) or 'none'}."


def carriers(parts: Sequence[Verdict], verdict: str, alpha: float) -> list[Verdict]:
    """The parts that made the overall verdict; all where none has its word."""
    words = [part.verdict for part in parts]
    found = [part for part in parts if part.verdict == verdict]
    if verdict == "refuted":
        found = [part for part in found if holds(part.p_refuted, alpha, words)]
    return found or list(parts)


def most(parts: Sequence[Verdict], rank: Badness) -> Verdict | None:
    """The part that ranks highest, of those with an interval if any has one."""
    numbers = [part for part in parts if part.estimate is not None]
    bounded = [part for part in numbers if part.interval]
    return max(bounded or numbers, key=rank, default=None)


def grouped(parts: tuple[Verdict, ...]) -> dict[str, list[str]]:
    """Scopes by verdict word, in order of appearance."""
    found: dict[str, list[str]] = {}
    for part in parts:
        found.setdefault(part.verdict, []).append(part.scope)
    return found
