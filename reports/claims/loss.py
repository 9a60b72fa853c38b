"""The verdict on final loss: paired tests at the end of a schedule, and their sentences."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pandas as pd

from reports.claims.combine import overall
from reports.claims.judge import Claim, Verdict, answer
from reports.claims.loss_pairs import Pairs, mixture, pair, planned
from reports.claims.loss_tests import (
    Decision,
    Settled,
    bounds_name,
    decide,
    margin_of,
    numbers,
    settle,
)
from reports.data.load import StudyData
from reports.data.pairing import COMPARED, nearest, warning
from reports.data.text import listed, number_text, plural
from reports.tables.edge_rates import edge_note
from reports.tables.falls import fall_over_spread

GROUP = ["model", "seq_len", "precision", "data_hash", "code_hash", "device", "planned_steps"]
CONDITIONS = (*COMPARED, "planned_steps")
RECIPE = ("lr", "betas", "eps", "weight_decay")
UNIT = "nats/token"


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


def interim(found: Verdict, seeds: int, open_cells: int) -> Verdict:
    """A verdict before all planned cells are there is none: it would be looked at again."""
    if not open_cells:
        return found
    said = f"Interim: {found.n} of {seeds} planned pairs; a verdict waits for the rest."
    word = found.verdict if found.verdict == "not tested" else "inconclusive"
    return replace(found, verdict=word, sentence=f"{said} {found.sentence}")


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


def headline(claim: Claim, pairs: Pairs, test: Decision | None, settled: Settled) -> dict[str, Any]:
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
