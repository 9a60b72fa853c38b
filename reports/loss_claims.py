"""The verdict on pretraining loss: paired tests at the end of a schedule, and their sentences."""

import math
from typing import Any

import pandas as pd

from reports.claims import Claim, Verdict, answer
from reports.combine import overall
from reports.load import StudyData
from reports.loss_pairs import Pairs, mixture, pair
from reports.loss_tests import bounds_name, decide, margin_of, numbers, reason, too_few
from reports.pairing import COMPARED, nearest, warning
from reports.text import listed, plural

GROUP = ["model", "seq_len", "precision", "data_hash", "code_hash", "device", "planned_steps"]
CONDITIONS = (*COMPARED, "planned_steps")
RECIPE = ("lr", "betas", "eps", "weight_decay")
UNIT = "nats/token"


def paired_loss(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """One verdict for each model and sequence length, and the overall one that holds them."""
    trained = data.runs[data.runs["task"] == "pretrain"]
    mine = trained[trained["optimizer"] == optimizer]
    return judge_all(claim, subject, optimizer, mine, data)


def rate_transfer(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """Paired loss of the cells that ran with the baseline's own learning rate and recipe.

    The baseline's rate, betas, eps and weight decay are those of its cells at the same model,
    length and number of steps; cells of the subject with anything else are no evidence here.
    """
    trained = data.runs[data.runs["task"] == "pretrain"]
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
    """Judge every condition that `mine` holds cells of, beside the study's baseline cells."""
    if data.study.get("demonstration"):
        sentence = "This study is a demonstration: too small for a verdict on loss."
        return answer(claim, subject, data, "not tested", sentence)
    trained = data.runs[data.runs["task"] == "pretrain"]
    base = trained[trained["optimizer"] == claim.baseline]
    if mine.empty or base.empty:
        absent = optimizer if mine.empty else claim.baseline
        sentence = f"No cell of this study trained a model with {absent}."
        return answer(claim, subject, data, "not tested", sentence)
    parts = []
    keys = [key for key in GROUP if key not in claim.allow_different]
    for _, group in mine.groupby(keys, dropna=False, sort=True):
        near = base[(base["model"] == group["model"].iloc[0])]
        near = near[near["seq_len"] == group["seq_len"].iloc[0]]
        parts.append(judge_group(claim, subject, group, near, data))
    return overall(claim, subject, data, tuple(parts), upper_bound)


def upper_bound(verdict: Verdict) -> float:
    """How bad a condition is for the claim: its upper bound, infinite where there is none."""
    return verdict.interval[1] if verdict.interval else math.inf


def judge_group(
    claim: Claim, subject: str, mine: pd.DataFrame, base: pd.DataFrame, data: StudyData
) -> Verdict:
    """The verdict of one condition; `base` are baseline cells of the same model and length."""
    first = mine.iloc[0]
    scope = f"{first['model']}, {first['seq_len']} tokens"

    def untested(sentence: str, cells: tuple[str, ...] = ()) -> Verdict:
        return answer(claim, subject, data, "not tested", sentence, scope=scope, cells=cells)

    if base.empty:
        return untested(f"No {claim.baseline} cell at {scope} to compare with.")
    conditions = [key for key in CONDITIONS if key not in claim.allow_different]
    same = base
    for key in conditions:
        same = same[same[key] == first[key]]
    if same.empty:
        apart = "; ".join(nearest(first.to_dict(), base.to_dict("records"), conditions))
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
    note = warning(mine, same, claim.allow_different)
    return judge_pairs(claim, subject, scope, pair(mine, same), data, note)


def judge_pairs(
    claim: Claim, subject: str, scope: str, pairs: Pairs, data: StudyData, note: str = ""
) -> Verdict:
    """The statistics of one condition and the sentence that says them."""
    test = decide(claim, pairs.differences) if len(pairs.differences) >= 2 else None
    if pairs.n < claim.min_seeds:
        verdict, why = "inconclusive", too_few(claim, test)
    elif pairs.diverged:
        verdict, why = "refuted", "A run that diverges where the baseline finishes is worse."
    elif test is None:
        verdict, why = "inconclusive", "One pair has no spread to test."
    elif test.verdict == "reproduced" and pairs.failed:
        verdict = "inconclusive"
        why = f"Without the runs that failed where the baseline finished ({listed(pairs.failed)})."
    else:
        verdict, why = test.verdict, reason(claim, test)
    notes = [f"Diverged: {listed(pairs.diverged)}."] if pairs.diverged else []
    notes += [f"Left out: {listed(pairs.left_out)}."] if pairs.left_out else []
    found = f"At {scope}, {plural(pairs.n, 'pair')}: {numbers(claim, pairs, test)}."
    more: dict[str, Any] = {}
    if pairs.diverged:
        more = {"estimate": math.inf}
    elif test is not None:
        more = {"estimate": test.estimate, "interval": (test.lower, test.upper)}
        more["interval_kind"] = bounds_name(claim)
    elif pairs.differences:
        more = {"estimate": pairs.differences[0]}
    return answer(
        claim, subject, data, verdict, " ".join(filter(None, [found, why, *notes, note])),
        scope=scope, n=pairs.n, cells=tuple(pairs.cells), margin=margin_of(claim), unit=UNIT,
        **more,
    )  # fmt: skip
