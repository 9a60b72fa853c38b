"""What a claim on paired outcomes measures, and the test of one condition with its words."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from reports.claims.loss_tests import decide, pairs_needed
from reports.claims.types import Claim
from reports.data.text import number_text, signed
from reports.stats.paired_tests import flip_test, order_test

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
    relation = measure.unit if measure.is_log else "nats from the baseline's"
    words = [
        f"{measure.noun} {texts[0]} {relation} ({kind} {texts[1]} to {texts[2]}).",
        test.bound.replace("zero", "1") if measure.is_log else test.bound,
    ]
    if test.verdict == "inconclusive":
        words.append(pairs_needed(claim, test, conditions))
    found = {"estimate": shown[0], "interval": (shown[1], shown[2]), "interval_kind": kind}
    return test.verdict, words, {**found, "p_refuted": test.p_refuted}


def p_words(lower: float, higher: float) -> str:
    """Both p-values: p = .016 for fewer, .99 for more."""
    return f"one-sided p = {lower:.3f} for lower, {higher:.3f} for higher"
