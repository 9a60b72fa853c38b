"""What the freed memory buys: the largest micro-batch that trains under the same cap."""

import math

import pandas as pd

from reports.claims.claim import Claim, Verdict, answer
from reports.claims.combine import overall
from reports.data.load import StudyData
from reports.data.pairing import compared, nearest, several, warning
from reports.data.text import listed, number_text
from reports.tables.capacity import Capacity, found_capacity

GROUP = ("model", "seq_len", "cap_gib", "precision")
KEY = "micro_batch"
UNIT = "times AdamW's largest micro-batch"


def capacity(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """Largest micro-batch of the subject over the baseline's, above `threshold` at each cap.

    The interval is what the two searches leave open; it closes when each has tried the next value.
    Tokens a second stand beside the verdict: one process each, so no test.
    """
    if claim.threshold is None:
        raise ValueError(f"Claim {claim.id} needs a threshold.")
    runs = data.runs[data.runs["task"] == "memory"]
    caps = [config.get("task", {}).get("memory_cap_gib") for config in runs["config"]]
    values = [config.get(KEY) for config in runs["config"]]
    runs = runs.assign(cap_gib=pd.Series(caps, runs.index, dtype=float)).assign(**{KEY: values})
    runs = runs[runs["cap_gib"].notna()]
    # A part that searches something else (a sequence length, a model) answers another question.
    searched = runs.groupby("part")[KEY].nunique()
    runs = runs[runs["part"].isin(searched[searched > 1].index)]
    mine = runs[runs["optimizer"] == optimizer]
    if mine.empty:
        sentence = f"No cell of {optimizer} searched the micro-batch under task.memory_cap_gib."
        return answer(claim, subject, data, "not tested", sentence)
    base = runs[runs["optimizer"] == claim.baseline]
    keys = list(dict.fromkeys([*GROUP, *compared(claim.allow_different)]))
    parts = [
        judge_group(claim, subject, group, base, keys, data)
        for _, group in mine.groupby(keys, dropna=False, sort=True)
    ]
    return overall(claim, subject, data, tuple(parts), smallest_gain)


def smallest_gain(verdict: Verdict) -> float:
    """How bad a condition is for the claim: the smaller the gain, the worse."""
    return -verdict.interval[0] if verdict.interval else math.inf


def judge_group(
    claim: Claim,
    subject: str,
    mine: pd.DataFrame,
    base: pd.DataFrame,
    keys: list[str],
    data: StudyData,
) -> Verdict:
    """One model, length, cap and precision."""
    first = mine.iloc[0]
    scope = (
        f"{first['model']}, {first['seq_len']} tokens, {first['precision']}, "
        f"{number_text(first['cap_gib'], 2)} GiB on {first['device']}"
    )
    scope += "" if first["ranks"] == "1" else f", {first['ranks']}"
    near = base
    for key in GROUP:
        near = near[near[key] == first[key]]
    same = near
    for key in keys:
        same = same[same[key] == first[key]]
    if same.empty:
        why = f"{claim.baseline} was not searched there"
        if not near.empty:
            why = "; ".join(nearest(first.to_dict(), near.to_dict("records"), keys))
        sentence = f"At {scope} nothing can be compared: {why}."
        return answer(claim, subject, data, "not tested", sentence, scope=scope)
    for cells in (mine, same):
        mixed = several(cells, keys)
        if mixed and not set(claim.allow_different):
            sentence = f"At {scope} the cells differ in {mixed}."
            return answer(claim, subject, data, "not tested", sentence, scope=scope)
    note = warning(mine, same, claim.allow_different)
    both = (found_capacity(mine, KEY), found_capacity(same, KEY))
    return judge_searches(claim, subject, scope, both, note, data)


def bracket(own: Capacity, base: Capacity, threshold: float) -> tuple[float, float, str]:
    """The least and the largest ratio that two searches leave open, and the verdict of these."""
    low = own.largest / (base.limit - 1) if base.limit > 1 else math.inf
    high = (own.limit - 1) / base.largest if base.largest else math.inf
    if own.odd or base.odd:
        return low, high, "inconclusive"
    if low > threshold:
        return low, high, "reproduced"
    return low, high, "refuted" if high <= threshold else "inconclusive"


def judge_searches(
    claim: Claim,
    subject: str,
    scope: str,
    both: tuple[Capacity, Capacity],
    note: str,
    data: StudyData,
) -> Verdict:
    """The verdict on two finished or unfinished searches."""
    assert claim.threshold is not None
    own, base = both
    cells = (*own.cells, *base.cells)
    notes = [f"Not monotone, so unsure: {listed(names)}." for names in (own.odd, base.odd) if names]
    notes += [
        f"Without an answer: {listed(names)}." for names in (own.failed, base.failed) if names
    ]
    if own.largest == 0 and base.largest == 0:
        sentence = f"At {scope} nothing trained with either optimizer."
        return answer(claim, subject, data, "not tested", " ".join([sentence, *notes]),
                      scope=scope, cells=cells)  # fmt: skip
    low, high, verdict = bracket(own, base, claim.threshold)
    estimate = own.largest / base.largest if base.largest else math.inf
    is_wide = verdict == "inconclusive" and not (own.odd or base.odd)
    notes += ["The searches are not narrow enough yet."] if is_wide else []
    rates = [f"{number_text(side.tokens_per_second, 0)}" for side in both]
    sentence = (
        f"At {scope} the largest micro-batch that trains is {own.largest}, beside {base.largest} "
        f"with {claim.baseline}; the claim asks for more than {number_text(claim.threshold, 2)} "
        f"times as much. Each boundary is one probe a side. Tokens a second there, untested (a few "
        f"steps of different batches): {rates[0]} beside {rates[1]}."
    )
    return answer(
        claim, subject, data, verdict, " ".join(filter(None, [sentence, *notes, note])),
        scope=scope, estimate=estimate, interval=(low, high), interval_kind="bracket of searches",
        margin=claim.threshold, unit=UNIT, n=2, n_of="searches", cells=cells,
    )  # fmt: skip


ESTIMATORS = (capacity,)
