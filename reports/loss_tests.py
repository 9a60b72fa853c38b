"""Which test a claim on loss asks for, and the words that say its result."""

from dataclasses import dataclass

from reports.claim_types import Claim
from reports.equivalence import tost, tost_required_n
from reports.loss_pairs import Pairs
from reports.statistics import noninferiority, required_n
from reports.text import number_text, signed


@dataclass(frozen=True)
class Decision:
    """What the claim's hypothesis makes of the differences; bounds each at 1 - alpha."""

    verdict: str
    estimate: float
    sd: float
    lower: float
    upper: float
    bound: str


def margin_of(claim: Claim) -> float:
    """The margin of the claim's hypothesis: "better" asks for a difference below zero."""
    if claim.hypothesis == "better":
        return 0.0
    if claim.margin is None:
        raise ValueError(f"Claim {claim.id} needs a margin.")
    return claim.margin


def decide(claim: Claim, differences: list[float]) -> Decision:
    """The test that the claim's hypothesis asks for: non-inferiority, superiority, equivalence."""
    margin = margin_of(claim)
    if claim.hypothesis == "same":
        same = tost(differences, -margin, margin, claim.alpha)
        where = {"reproduced": "inside", "refuted": "outside"}.get(same.verdict, "across")
        bound = f"The interval lies {where} the margins."
        return Decision(same.verdict, same.estimate, same.sd, same.lower, same.upper, bound)
    test = noninferiority(differences, margin, claim.alpha)
    line = "zero" if claim.hypothesis == "better" else "the margin"
    bound = {
        "reproduced": f"The upper bound is below {line}.",
        "refuted": f"The lower bound is above {line}.",
    }.get(test.verdict, f"The bounds enclose {line}.")
    return Decision(test.verdict, test.estimate, test.sd, test.lower, test.upper, bound)


def bounds_name(claim: Claim) -> str:
    """What the interval is: two one-sided bounds, or for "same" the interval of two tests."""
    if claim.hypothesis == "same":
        return f"{1 - 2 * claim.alpha:.0%} interval"
    return f"one-sided {1 - claim.alpha:.0%} bounds"


def numbers(claim: Claim, pairs: Pairs, test: Decision | None) -> str:
    """The difference with its bounds, as far as there are any."""
    if test is not None:
        margin = margin_of(claim)
        limit = f"±{number_text(margin)}" if claim.hypothesis == "same" else signed(margin, 3)
        return (
            f"final held-out loss differs by {signed(test.estimate)} nats "
            f"({bounds_name(claim)} {signed(test.lower)} to {signed(test.upper)}, margin {limit})"
        )
    if pairs.differences:
        return (
            f"final held-out loss differs by {signed(pairs.differences[0])} nats, no spread known"
        )
    return "no finite difference in final held-out loss"


def reason(claim: Claim, test: Decision) -> str:
    """Why the test ended as it did; for an open one, how many pairs would settle it."""
    return f"{test.bound} {pairs_needed(claim, test)}" if test.verdict == "inconclusive" else (
        test.bound
    )  # fmt: skip


def too_few(claim: Claim, test: Decision | None) -> str:
    """Why there is no verdict yet, and how many pairs it would take."""
    ask = f"A verdict needs at least {claim.min_seeds} paired seeds."
    return ask if test is None else f"{ask} {pairs_needed(claim, test)}"


def pairs_needed(claim: Claim, test: Decision) -> str:
    """Pairs for the planned power at the observed spread, under two readings of the truth."""
    margin, found = margin_of(claim), abs(test.estimate)
    if claim.hypothesis == "same" and found < margin:
        zero, seen = (
            tost_required_n(test.sd, truth, margin, claim.alpha, claim.power)
            for truth in (0.0, found)
        )
    else:
        zero = required_n(test.sd, margin, claim.alpha, claim.power)
        if claim.hypothesis == "same":
            zero = tost_required_n(test.sd, 0.0, margin, claim.alpha, claim.power)
            seen = required_n(test.sd, found - margin, claim.alpha, claim.power)
        else:
            distance = abs(margin - test.estimate)
            seen = required_n(test.sd, distance, claim.alpha, claim.power)
    both = ["more than 100,000" if n is None else f"{max(n, claim.min_seeds):,}"
            for n in (zero, seen)]  # fmt: skip
    head = f"At the observed spread (sd {test.sd:.4f}) {claim.power:.0%} power takes"
    last = f"{both[1]} if it is the observed one."
    if claim.hypothesis == "better":  # with no true difference nothing could show one
        return f"{head} {both[1]} paired seeds if the true difference is the observed one."
    return f"{head} {both[0]} paired seeds if the true difference is zero, {last}"
