"""Which test a claim on loss asks for, and the words that say its result."""

from dataclasses import dataclass

from reports.claims.loss_pairs import Pairs
from reports.claims.types import Claim
from reports.data.text import listed, number_text, plural, signed
from reports.stats.equivalence import tost, tost_required_n
from reports.stats.statistics import noninferiority, required_n, sign_test, upper_sd

SPREAD = 0.8  # confidence of the limit of the spread that planned numbers of pairs start from


@dataclass(frozen=True)
class Decision:
    """What the claim's hypothesis makes of n differences; bounds each at 1 - alpha."""

    verdict: str
    estimate: float
    sd: float
    lower: float
    upper: float
    bound: str
    n: int
    p_refuted: float


@dataclass(frozen=True)
class Settled:
    """A verdict on the pairs of one condition, why, and the p-value of what refutes it.

    `by_sign`: it is refuted by how often the candidate diverged, not by losses.
    """

    verdict: str
    why: str
    p_refuted: float | None = None
    by_sign: bool = False


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
        return Decision(
            same.verdict, same.estimate, same.sd, same.lower, same.upper, bound, same.n,
            same.p_refuted,
        )  # fmt: skip
    test = noninferiority(differences, margin, claim.alpha)
    line = "zero" if claim.hypothesis == "better" else "the margin"
    bound = {
        "reproduced": f"The upper bound is below {line}.",
        "refuted": f"The lower bound is above {line}.",
    }.get(test.verdict, f"The bounds enclose {line}.")
    return Decision(
        test.verdict, test.estimate, test.sd, test.lower, test.upper, bound, test.n, test.p_refuted
    )


def settle(claim: Claim, pairs: Pairs, test: Decision | None, conditions: int) -> Settled:
    """The verdict of one of `conditions` conditions."""
    if pairs.n < claim.min_seeds:
        ask = f"A verdict needs at least {claim.min_seeds} paired seeds."
        more = "" if test is None else pairs_needed(claim, test, conditions)
        return Settled("inconclusive", " ".join(filter(None, [ask, more])))
    if pairs.diverged or pairs.base_diverged:
        return settle_divergence(claim, pairs, test)
    if test is None:
        return Settled("inconclusive", "One pair has no spread to test.")
    if test.verdict == "reproduced" and (pairs.failed or pairs.missing):
        return Settled("inconclusive", incomplete(pairs))
    why = test.bound
    if test.verdict == "inconclusive":
        why = f"{why} {pairs_needed(claim, test, conditions)}"
    return Settled(test.verdict, why, test.p_refuted)


def incomplete(pairs: Pairs) -> str:
    """Why a good result stays open: where the baseline finished, the candidate did not."""
    lost = []
    if pairs.failed:
        lost.append(f"runs that failed where the baseline finished ({listed(pairs.failed)})")
    if pairs.missing:
        lost.append(f"cells that are absent where the baseline finished ({listed(pairs.missing)})")
    return f"Without the {' and the '.join(lost)}."


def settle_divergence(claim: Claim, pairs: Pairs, test: Decision | None) -> Settled:
    """The verdict where one of two runs diverged in at least one pair.

    Refuted when the exact sign test of "only the candidate" against "only the baseline" rejects.
    Fewer than five such pairs can never make it reject; then, and only then, the pairs that
    finished may refute by themselves. So whatever the number of discordant pairs, one test decides
    and P(refuted) stays at alpha when both arms diverge equally often.
    """
    mine, base = len(pairs.diverged), len(pairs.base_diverged)
    p = sign_test(mine, base)
    counts = (
        f"Only the candidate diverged in {plural(mine, 'pair')}, only the baseline in {base} "
        f"(one-sided sign test p = {p:.3f})."
    )
    if p < claim.alpha:
        return Settled("refuted", f"{counts} It diverges more often.", p, by_sign=True)
    finished = test if test is not None and test.n >= claim.min_seeds else None
    word = finished.verdict if finished else ""
    can_reject = 0.5 ** (mine + base) < claim.alpha
    if finished and word == "refuted" and mine >= base and not can_reject:
        return Settled(
            "refuted", f"{counts} The pairs that finished refute it.", finished.p_refuted
        )
    is_whole = not (mine or pairs.failed or pairs.missing)
    if word == "reproduced" and is_whole and claim.hypothesis != "same":
        return Settled("reproduced", f"{counts} {test.bound if test else ''}")
    return Settled("inconclusive", f"{counts} That decides nothing.")


def bounds_name(claim: Claim) -> str:
    """What the interval is: two one-sided bounds, or for "same" the interval of two tests."""
    if claim.hypothesis == "same":
        return f"{1 - 2 * claim.alpha:.0%} interval"
    return f"one-sided {1 - claim.alpha:.0%} bounds"


def numbers(claim: Claim, pairs: Pairs, test: Decision | None) -> str:
    """The difference with its bounds, as far as there are any."""
    some = pairs.n - len(pairs.differences)
    over = f" over the {plural(len(pairs.differences), 'pair')} that finished" if some else ""
    if test is not None:
        margin = margin_of(claim)
        limit = f"±{number_text(margin)}" if claim.hypothesis == "same" else signed(margin, 3)
        return (
            f"final held-out loss differs by {signed(test.estimate)} nats{over} "
            f"({bounds_name(claim)} {signed(test.lower)} to {signed(test.upper)}, margin {limit})"
        )
    if pairs.differences:
        return (
            f"final held-out loss differs by {signed(pairs.differences[0])} nats{over}, "
            "no spread known"
        )
    return "no finite difference in final held-out loss"


def pairs_needed(claim: Claim, test: Decision, conditions: int = 1) -> str:
    """Fresh pairs for the planned power, at the upper limit of the spread that so few pairs leave.

    Reproduced takes all conditions at once, so each is planned at power ** (1 / conditions);
    refuted takes one, at alpha / conditions.
    """
    sd, margin = upper_sd(test.sd, test.n, SPREAD), margin_of(claim)
    each = claim.power ** (1 / conditions)
    ways = []
    if claim.hypothesis != "better":  # with no true difference nothing could show one
        ways.append((f"{each:.0%} power to reproduce takes", to_reproduce(claim, sd, 0.0, each),
                     "zero"))  # fmt: skip
    beyond = abs(test.estimate) - margin if claim.hypothesis == "same" else test.estimate - margin
    if beyond > 0:
        n = required_n(sd, beyond, claim.alpha / conditions, claim.power)
        ways.append((f"{claim.power:.0%} power to refute takes", n, "the observed one"))
    elif claim.hypothesis == "better":
        n = to_reproduce(claim, sd, test.estimate, each)
        ways.append((f"{each:.0%} power to reproduce takes", n, "the observed one"))
    said = [
        f"{head} {count(claim, n)} paired seeds if the true difference is {truth}"
        for head, n, truth in ways
    ]
    limit = f"At the upper {SPREAD:.0%} limit of the spread (sd {sd:.4f}; observed {test.sd:.4f})"
    return f"{limit}, on fresh seeds judged alone, {'; '.join(said)}."


def to_reproduce(claim: Claim, sd: float, truth: float, target: float) -> int | None:
    """Pairs that reproduce the claim with power `target` when the true difference is `truth`."""
    margin = margin_of(claim)
    if claim.hypothesis == "same":
        return tost_required_n(sd, truth, margin, claim.alpha, target)
    return required_n(sd, margin - truth, claim.alpha, target)


def count(claim: Claim, n: int | None) -> str:
    """A number of pairs, never below what a verdict takes."""
    return "more than 100,000" if n is None else f"{max(n, claim.min_seeds):,}"
