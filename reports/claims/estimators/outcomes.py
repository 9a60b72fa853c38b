"""Claims that a subject's outcome is lower than each baseline's, paired by seed, in any unit.

An estimator says with a `Measure` which conditions there are and what one run's outcome is; the
pairing, the refusals, the tests and the sentences are the same for all of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from reports.claims.claim import Claim, Verdict, answer
from reports.claims.combine import overall
from reports.claims.estimators.loss import bound_text, decide, pairs_needed
from reports.claims.paired import interim, mixture, planned
from reports.data.load import StudyData
from reports.data.pairing import COMPARED, nearest, unlike, warning
from reports.data.text import listed, number_text, plural, signed
from reports.data.tuned_rates import edge_note
from reports.stats.paired_tests import flip_test, order_test

SETTING = ("model", "seq_len", "planned_steps", *COMPARED)
Seeds = tuple[int, int]


@dataclass(frozen=True)
class Outcome:
    """What one run came to: a number, inf where it diverged or never got there; or why not."""

    value: float
    cells: tuple[str, ...]
    trouble: str = ""


@dataclass(frozen=True)
class Condition:
    """Cells of one arm in one condition; `compared` are those that must be alike in both arms."""

    scope: str
    cells: pd.DataFrame
    compared: tuple[pd.DataFrame, ...]


@dataclass(frozen=True)
class Measure:
    """What an estimator measures.

    `conditions` splits an arm's cells by a key that both arms share; `outcomes` gives a number by
    seeds. With `is_count` differences are tested by flipping signs, else by Student's t. `is_log`:
    outcomes are logs, shown as ratios. `infinite` says what an infinite outcome means, `objection`
    what in one arm's cells keeps a good verdict open ("" for nothing).
    """

    conditions: Callable[[pd.DataFrame], dict[Any, Condition]]
    outcomes: Callable[[Condition], dict[Seeds, Outcome]]
    noun: str
    unit: str
    infinite: str
    absent: str
    is_count: bool = False
    is_log: bool = False
    needs_test_split: bool = True
    objection: Callable[[Condition], str] = lambda _: ""


@dataclass
class Paired:
    """Outcomes that pair up, seeds left out with the reason, seeds that only the subject lost."""

    mine: list[float] = field(default_factory=list)
    base: list[float] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)


Judged = tuple[str, list[str], dict[str, Any]]


def lower_than(
    claim: Claim, subject: str, optimizer: str, data: StudyData, measure: Measure
) -> Verdict:
    """One verdict for each baseline and condition, and the overall one that holds them."""
    if data.study.get("demonstration"):
        sentence = "This study is a demonstration: too small for a verdict on training."
        return answer(claim, subject, data, "not tested", sentence)
    trained = data.runs[data.runs["task"] == claim.task]
    mine = measure.conditions(trained[trained["optimizer"] == optimizer])
    if not mine:
        sentence = f"No cell of {optimizer} {measure.absent}."
        return answer(claim, subject, data, "not tested", sentence)
    names = claim.baselines or [claim.baseline]
    parts = []
    for name in names:
        base = measure.conditions(trained[trained["optimizer"] == name])
        for key, condition in mine.items():
            scope = f"{condition.scope}, against {name}"
            respond = Responder(replace(claim, baseline=name), subject, data, scope)
            other = base.get(key)
            if other is None:
                parts.append(respond("not tested", f"At {scope}: no cell of {name} to compare."))
                continue
            conditions = len(names) * len(mine)
            parts.append(judge_condition(respond, condition, other, measure, conditions))
    return overall(claim, subject, data, tuple(parts), badness, clearness)


@dataclass(frozen=True)
class Responder:
    """The verdicts of one condition: what they share."""

    claim: Claim
    subject: str
    data: StudyData
    scope: str

    def __call__(self, verdict: str, sentence: str, **more: Any) -> Verdict:
        """A verdict with this sentence."""
        return answer(
            self.claim, self.subject, self.data, verdict, sentence, scope=self.scope, **more
        )


def badness(verdict: Verdict) -> float:
    """How bad a condition is for the claim: its upper bound, or its estimate."""
    if verdict.interval:
        return verdict.interval[1]
    return math.inf if verdict.estimate is None else verdict.estimate


def clearness(verdict: Verdict) -> float:
    """How clearly a condition refutes."""
    return -1.0 if verdict.p_refuted is None else -verdict.p_refuted


def judge_condition(
    respond: Responder, mine: Condition, base: Condition, measure: Measure, conditions: int
) -> Verdict:
    """Refuse what cannot be compared, pair the rest, and judge it."""
    allowed, first = respond.claim.allow_different, mine.cells.iloc[0].to_dict()
    keys = [key for key in SETTING if key not in allowed]
    both = pd.concat([mine.cells, base.cells])
    cells, rows = tuple(both["id"]), [r for r in both.to_dict("records") if unlike(first, r, keys)]
    if rows:
        apart = "; ".join(nearest(first, rows, keys))
        sentence = f"At {respond.scope} the cells cannot be compared: {apart}."
        return respond("not tested", sentence, cells=cells)
    if measure.needs_test_split and first["eval_split"] != "test":
        return respond(
            "not tested",
            f"At {respond.scope} the loss is that of the {first['eval_split']} split, on which "
            "learning rates are chosen; a verdict needs task.eval_split=test.",
        )
    for left, right in zip(mine.compared, base.compared, strict=True):
        mixed = mixture(left, right, allowed) if len(left) and len(right) else ""
        if mixed:
            sentence = f"At {respond.scope} the cells cannot be compared: {mixed}."
            return respond("not tested", sentence, cells=cells)
    paired = pair(measure.outcomes(mine), measure.outcomes(base), respond.claim.baseline)
    notes = [edge_note(mine.cells, base.cells), warning(mine.cells, base.cells, allowed)]
    found = judge(respond, paired, measure, conditions, " ".join(filter(None, notes)))
    if found.verdict == "reproduced":
        objection = " ".join(filter(None, map(measure.objection, (mine, base))))
        if objection:
            found = replace(found, verdict="inconclusive", sentence=f"{found.sentence} {objection}")
    return interim(found, *planned(both, respond.data.pending))


def pair(mine: Mapping[Seeds, Outcome], base: Mapping[Seeds, Outcome], baseline: str) -> Paired:
    """Pair by model and data seed; nothing is dropped without a name."""
    paired, gone = Paired(), Outcome(math.nan, (), "has no cell")
    for seeds in sorted({*mine, *base}):
        name = f"seed {seeds[0]}" if seeds[0] == seeds[1] else f"{seeds[0]}/{seeds[1]}"
        left, right = mine.get(seeds, gone), base.get(seeds, gone)
        if right.trouble or left.trouble:
            who = f"{baseline} {right.trouble}" if right.trouble else f"candidate {left.trouble}"
            paired.left_out.append(f"{name} ({who})")
            paired.lost += [] if right.trouble else [name]
            continue
        paired.mine.append(left.value)
        paired.base.append(right.value)
        paired.cells += [*left.cells, *right.cells]
    return paired


def judge(
    respond: Responder, paired: Paired, measure: Measure, conditions: int, note: str
) -> Verdict:
    """The test of one condition and the sentence that says it.

    Which test it is depends on whether any outcome of either arm is infinite: swapping the arms
    leaves that alone, so each test keeps its error and so does the whole.
    """
    claim, n = respond.claim, len(paired.mine)
    more: dict[str, Any] = {"n": n, "unit": measure.unit, "cells": tuple(paired.cells)}
    if measure.is_log or not measure.is_count:
        more["margin"] = 1.0 if measure.is_log else 0.0
    infinite = any(map(math.isinf, [*paired.mine, *paired.base]))
    verdict, said = "inconclusive", [f"At {respond.scope}, {plural(n, 'pair')}:"]
    if n and infinite:
        verdict, words, found = by_order(claim, paired, measure)
    elif n and measure.is_count:
        verdict, words, found = by_flips(claim, paired, measure)
    elif n > 1:
        verdict, words, found = by_t(claim, paired, measure, conditions)
    else:
        words, found = ["nothing to test."], {}
    if n < claim.min_seeds:
        verdict = "inconclusive"
        words = [*words, f"A verdict needs at least {claim.min_seeds} paired seeds."]
    if verdict == "reproduced" and paired.lost:
        verdict = "inconclusive"
        words = [*words, f"Open, since the subject failed or is absent at {listed(paired.lost)}."]
    if paired.left_out:
        words = [*words, f"Left out: {listed(paired.left_out)}."]
    return respond(verdict, " ".join([*said, *words, note]).strip(), **more, **found)


def split(cells: pd.DataFrame, keys: Sequence[str]) -> dict[Any, pd.DataFrame]:
    """Cells by the values of `keys`."""
    if cells.empty:
        return {}
    return {key: group for key, group in cells.groupby(list(keys), dropna=False, sort=True)}


def by_order(claim: Claim, paired: Paired, measure: Measure) -> Judged:
    """The sign test, where some outcomes are infinite."""
    test = order_test(paired.mine, paired.base)
    counts = [sum(map(math.isinf, arm)) for arm in (paired.mine, paired.base)]
    pairs = list(zip(paired.mine, paired.base, strict=True))
    fewer, more = (sum(sign * a < sign * b for a, b in pairs) for sign in (1, -1))
    words = [
        f"{counts[0]} of the candidate's runs and {counts[1]} of the baseline's "
        f"{measure.infinite}, so the order of each pair is tested: the candidate is lower in "
        f"{fewer}, higher in {more} ({p_words(test.p_lower, test.p_higher)}, sign test)."
    ]
    return test.verdict(claim.alpha), words, {"p_refuted": test.p_higher}


def by_flips(claim: Claim, paired: Paired, measure: Measure) -> Judged:
    """The test of counts."""
    differences = [a - b for a, b in zip(paired.mine, paired.base, strict=True)]
    test = flip_test(differences)
    totals = [number_text(sum(arm), 0) for arm in (paired.mine, paired.base)]
    words = [
        f"{totals[0]} {measure.noun} in all against {totals[1]} of the baseline's "
        f"({p_words(test.p_lower, test.p_higher)}, exact test by flipping signs)."
    ]
    if not any([*paired.mine, *paired.base]):
        words.append("Where neither had any, nothing can be told.")
    least = 0.5 ** sum(difference != 0 for difference in differences)
    if least >= claim.alpha:
        words.append("So few pairs that differ can reach no verdict.")
    estimate = sum(differences) / len(differences)
    return test.verdict(claim.alpha), words, {"estimate": estimate, "p_refuted": test.p_higher}


def by_t(claim: Claim, paired: Paired, measure: Measure, conditions: int) -> Judged:
    """Student's t on the differences, as losses are judged."""
    test = decide(claim, [a - b for a, b in zip(paired.mine, paired.base, strict=True)])
    values = (test.estimate, test.lower, test.upper)
    shown = [math.exp(value) if measure.is_log else value for value in values]
    texts = [number_text(value, 3) if measure.is_log else signed(value) for value in shown]
    kind = f"one-sided {1 - claim.alpha:.0%} bounds"
    bound = bound_text(claim, test)
    relation = measure.unit if measure.is_log else "nats from the baseline's"
    words = [
        f"{measure.noun} {texts[0]} {relation} ({kind} {texts[1]} to {texts[2]}).",
        bound.replace("zero", "1") if measure.is_log else bound,
    ]
    if test.verdict == "inconclusive":
        words.append(pairs_needed(claim, test, conditions))
    found = {"estimate": shown[0], "interval": (shown[1], shown[2]), "interval_kind": kind}
    return test.verdict, words, {**found, "p_refuted": test.p_refuted}


def p_words(lower: float, higher: float) -> str:
    """Both p-values: p = .016 for fewer, .99 for more."""
    return f"one-sided p = {lower:.3f} for lower, {higher:.3f} for higher"
