"""Claims that a subject's outcome is lower than each baseline's, paired by seed, in any unit.

An estimator says with a `Measure` which conditions there are and what one run's outcome is; the
pairing, the refusals, the tests and the sentences are the same for all of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from reports.claims.combine import overall
from reports.claims.judge import Claim, Verdict, answer
from reports.claims.loss import interim
from reports.claims.loss_pairs import mixture, planned
from reports.claims.outcome_tests import (
    Condition,
    Measure,
    Outcome,
    Paired,
    Seeds,
    by_flips,
    by_order,
    by_t,
)
from reports.data.load import StudyData
from reports.data.pairing import COMPARED, nearest, unlike, warning
from reports.data.text import listed, plural
from reports.tables.edge_rates import edge_note

SETTING = ("model", "seq_len", "planned_steps", *COMPARED)


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


def by_seeds(cells: pd.DataFrame) -> dict[Seeds, dict[Any, Any]]:
    """Each cell as a row by its model and data seed."""
    return {(row["model_seed"], row["data_seed"]): row for row in cells.to_dict("records")}


def split(cells: pd.DataFrame, keys: Sequence[str]) -> dict[Any, pd.DataFrame]:
    """Cells by the values of `keys`."""
    if cells.empty:
        return {}
    return {key: group for key, group in cells.groupby(list(keys), dropna=False, sort=True)}
