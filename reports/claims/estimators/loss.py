"""The verdict on final loss: paired tests at the end of a schedule, and their sentences."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from reports.claims.claim import Claim, Verdict, answer
from reports.claims.combine import overall
from reports.claims.paired import Pairs, interim, mixture, pair, planned
from reports.data.load import StudyData
from reports.data.pairing import COMPARED, nearest, warning
from reports.data.text import listed, number_text, plural, signed
from reports.data.tuned_rates import edge_note
from reports.data.values import fall_over_spread
from reports.stats.paired_tests import PairedTest, noninferiority, sign_test, tost
from reports.stats.power import required_n, tost_required_n, upper_sd

GROUP = ["model", "seq_len", "precision", "data_hash", "code_hash", "device", "planned_steps"]
CONDITIONS = (*COMPARED, "planned_steps")
RECIPE = ("lr", "betas", "eps", "weight_decay")
UNIT = "nats/token"
SPREAD = 0.8  # confidence of the limit of the spread that planned numbers of pairs start from


@dataclass(frozen=True)
class Settled:
    """A verdict on the pairs of one condition, why, and the p-value of what refutes it.

    `by_sign`: it is refuted by how often the candidate diverged, not by losses.
    """

    verdict: str
    why: str
    p_refuted: float | None = None
    by_sign: bool = False


def paired_loss(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """One verdict for each model and sequence length, and the overall one that holds them."""
    trained = data.runs[data.runs["task"] == claim.task]
    mine = trained[trained["optimizer"] == optimizer]
    return judge_all(claim, subject, optimizer, mine, data)


def rate_transfer(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """Paired loss of the cells that ran with the baseline's own learning rate and recipe.

    The baseline's rate, betas, eps and weight decay are those of its cells at the same model,
    length and number of steps; cells of the subject with anything else are no evidence here.
    """
    trained = data.runs[data.runs["task"] == claim.task]
    mine = trained[trained["optimizer"] == optimizer]
    base = trained[trained["optimizer"] == claim.baseline]
    keys = ["model", "seq_len", "planned_steps"]
    known: dict[Any, list[Any]] = {}
    for row in base.to_dict("records"):
        known.setdefault(tuple(row[key] for key in keys), []).append(recipe(row))
    keep = [
        recipe(row) in known.get(tuple(row[key] for key in keys), [])
        for row in mine.to_dict("records")
    ]
    if not mine.empty and not base.empty and not any(keep):
        sentence = (
            f"No cell of {optimizer} ran with the learning rate, betas, eps and weight decay of "
            f"{claim.baseline}."
        )
        return answer(claim, subject, data, "not tested", sentence)
    return judge_all(claim, subject, optimizer, mine[keep], data)


def recipe(row: dict[Any, Any]) -> tuple[Any, ...]:
    """Learning rate, betas, eps and weight decay of a cell, hashable."""
    settings = row["config"]["optimizer"]
    return tuple(str(settings.get(key)) for key in RECIPE)


def judge_all(
    claim: Claim, subject: str, optimizer: str, mine: pd.DataFrame, data: StudyData
) -> Verdict:
    """Judge every condition that `mine` holds cells of, beside each baseline's cells."""
    if data.study.get("demonstration"):
        sentence = "This study is a demonstration: too small for a verdict on loss."
        return answer(claim, subject, data, "not tested", sentence)
    trained = data.runs[data.runs["task"] == claim.task]
    names = claim.baselines or [claim.baseline]
    missing = [name for name in names if not (trained["optimizer"] == name).any()]
    if mine.empty or len(missing) == len(names):
        absent = optimizer if mine.empty else listed(missing)
        sentence = f"No cell of this study trained a model with {absent}."
        return answer(claim, subject, data, "not tested", sentence)
    parts = []
    keys = [key for key in GROUP if key not in claim.allow_different]
    groups = [group for _, group in mine.groupby(keys, dropna=False, sort=True)]
    for name, group in itertools.product(names, groups):
        base = trained[trained["optimizer"] == name]
        near = base[(base["model"] == group["model"].iloc[0])]
        near = near[near["seq_len"] == group["seq_len"].iloc[0]]
        one = replace(claim, baseline=name)
        parts.append(judge_group(one, subject, group, near, data, len(groups) * len(names)))
    return overall(claim, subject, data, tuple(parts), upper_bound, lower_excess)


def upper_bound(verdict: Verdict) -> float:
    """How bad a condition is for the claim: its upper bound, infinite where there is none."""
    return verdict.interval[1] if verdict.interval else math.inf


def lower_excess(verdict: Verdict) -> float:
    """How clearly a condition refutes: its lower bound less the margin."""
    return verdict.interval[0] - (verdict.margin or 0.0) if verdict.interval else math.inf


def judge_group(
    claim: Claim,
    subject: str,
    mine: pd.DataFrame,
    base: pd.DataFrame,
    data: StudyData,
    conditions: int = 1,
) -> Verdict:
    """One of `conditions` conditions; `base` are baseline cells of the same model and length."""
    first = mine.iloc[0]
    scope = f"{first['model']}, {first['seq_len']} tokens"
    scope += f", against {claim.baseline}" if len(claim.baselines) > 1 else ""

    def untested(sentence: str, cells: tuple[str, ...] = ()) -> Verdict:
        return answer(claim, subject, data, "not tested", sentence, scope=scope, cells=cells)

    if base.empty:
        return untested(f"No {claim.baseline} cell at {scope} to compare with.")
    keys = [key for key in CONDITIONS if key not in claim.allow_different]
    same = base
    for key in keys:
        same = same[same[key] == first[key]]
    if same.empty:
        apart = "; ".join(nearest(first.to_dict(), base.to_dict("records"), keys))
        return untested(f"At {scope} the cells cannot be compared: {apart}.")
    if first["eval_split"] != "test":
        return untested(
            f"At {scope} the loss is that of the {first['eval_split']} split, on which learning "
            "rates are chosen; a verdict needs task.eval_split=test."
        )
    mixed = mixture(mine, same, claim.allow_different)
    if mixed:
        cells = (*mine["id"], *same["id"])
        return untested(f"At {scope} the cells cannot be compared: {mixed}.", cells)
    notes = [edge_note(mine, same), warning(mine, same, claim.allow_different)]
    found = judge_pairs(
        claim, subject, scope, pair(mine, same), data, " ".join(filter(None, notes)), conditions
    )
    found = after_training(claim, found, mine, same)
    return interim(found, *planned(pd.concat([mine, same]), data.pending))


def after_training(claim: Claim, found: Verdict, mine: pd.DataFrame, base: pd.DataFrame) -> Verdict:
    """A verdict where too little was learned to tell optimizers apart there is none.

    A candidate that learns little beside a baseline that learns is refuted all the same.
    """
    if not claim.min_fall:
        return found
    names = {claim.baseline: base} | ({} if found.verdict == "refuted" else {"the candidate": mine})
    said = []
    for name, cells in names.items():
        ratio = fall_over_spread(cells)
        if math.isnan(ratio):
            said.append(f"What the loss of {name} fell by on one text is not known.")
        elif ratio < claim.min_fall:
            said.append(
                f"The loss of {name} fell by {number_text(ratio, 1)} times the spread of its "
                f"seeds; a verdict needs {claim.min_fall:g} times, so more steps."
            )
    if not said:
        return found
    word = found.verdict if found.verdict == "not tested" else "inconclusive"
    return replace(found, verdict=word, sentence=" ".join([found.sentence, *said]))


def judge_pairs(
    claim: Claim,
    subject: str,
    scope: str,
    pairs: Pairs,
    data: StudyData,
    note: str = "",
    conditions: int = 1,
) -> Verdict:
    """The statistics of one condition and the sentence that says them."""
    test = decide(claim, pairs.differences) if len(pairs.differences) >= 2 else None
    settled = settle(claim, pairs, test, conditions)
    notes = [
        f"{head}: {listed(names)}."
        for head, names in (
            ("Diverged", pairs.diverged),
            ("Baseline diverged", pairs.base_diverged),
            ("Left out", pairs.left_out),
        )
        if names
    ]
    found = f"At {scope}, {plural(pairs.n, 'pair')}: {numbers(claim, pairs, test)}."
    said = " ".join(filter(None, [found, settled.why, *notes, note]))
    return answer(
        claim, subject, data, settled.verdict, said, scope=scope, n=pairs.n,
        cells=tuple(pairs.cells), margin=margin_of(claim), unit=UNIT,
        p_refuted=settled.p_refuted, **headline(claim, pairs, test, settled),
    )  # fmt: skip


def headline(
    claim: Claim, pairs: Pairs, test: PairedTest | None, settled: Settled
) -> dict[str, Any]:
    """Estimate and interval that stand for the verdict."""
    if settled.by_sign or not pairs.differences:
        return {"estimate": math.inf} if pairs.diverged else {}
    if test is None:
        return {"estimate": pairs.differences[0]}
    some = len(pairs.differences) < pairs.n
    over = f" over the {len(pairs.differences)} pairs that finished" if some else ""
    return {
        "estimate": test.estimate,
        "interval": (test.lower, test.upper),
        "interval_kind": f"{bounds_name(claim)}{over}",
    }


def margin_of(claim: Claim) -> float:
    """The margin of the claim's hypothesis: "better" asks for a difference below zero."""
    if claim.hypothesis == "better":
        return 0.0
    if claim.margin is None:
        raise ValueError(f"Claim {claim.id} needs a margin.")
    return claim.margin


def decide(claim: Claim, differences: list[float]) -> PairedTest:
    """The test that the claim's hypothesis asks for: non-inferiority, superiority, equivalence."""
    margin = margin_of(claim)
    if claim.hypothesis == "same":
        return tost(differences, -margin, margin, claim.alpha)
    return noninferiority(differences, margin, claim.alpha)


def bound_text(claim: Claim, test: PairedTest) -> str:
    """Where the bounds lie, which is the reason for the test's verdict."""
    if claim.hypothesis == "same":
        where = {"reproduced": "inside", "refuted": "outside"}.get(test.verdict, "across")
        return f"The interval lies {where} the margins."
    line = "zero" if claim.hypothesis == "better" else "the margin"
    return {
        "reproduced": f"The upper bound is below {line}.",
        "refuted": f"The lower bound is above {line}.",
    }.get(test.verdict, f"The bounds enclose {line}.")


def settle(claim: Claim, pairs: Pairs, test: PairedTest | None, conditions: int) -> Settled:
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
    why = bound_text(claim, test)
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


def settle_divergence(claim: Claim, pairs: Pairs, test: PairedTest | None) -> Settled:
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
    if finished and word == "reproduced" and is_whole and claim.hypothesis != "same":
        return Settled("reproduced", f"{counts} {bound_text(claim, finished)}")
    return Settled("inconclusive", f"{counts} That decides nothing.")


def bounds_name(claim: Claim) -> str:
    """What the interval is: two one-sided bounds, or for "same" the interval of two tests."""
    if claim.hypothesis == "same":
        return f"{1 - 2 * claim.alpha:.0%} interval"
    return f"one-sided {1 - claim.alpha:.0%} bounds"


def numbers(claim: Claim, pairs: Pairs, test: PairedTest | None) -> str:
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


def pairs_needed(claim: Claim, test: PairedTest, conditions: int = 1) -> str:
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


ESTIMATORS = (paired_loss, rate_transfer)
