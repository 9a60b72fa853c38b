"""The verdict on peak memory: lowest among rivals, transients included, within meters' errors."""

import math

import pandas as pd

from reports.claims.combine import overall
from reports.claims.failed_cells import uncapped
from reports.claims.judge import Claim, Verdict, answer
from reports.data.load import StudyData
from reports.data.pairing import compared, warning
from reports.data.text import byte_text, listed, number_text
from reports.data.values import words

GROUP = ("model", "seq_len", "precision", "micro_batch", "method")
PEAKS = ("peak_first_step_bytes", "peak_steady_step_bytes")
LEAST_CPU_BYTES = 500_000_000  # below, a resident peak says more about the process than the step
CPU_ERROR = 0.15
UNIT = "times (the closest rival's peak, weights and gradients included, over its own)"


def lowest_peak(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """The peak during optimizer steps (weights, gradients, state, transients) beside rivals'.

    Weights and gradients are the same for all, so the order is that of optimizer memory, and the
    ratio of two peaks understates that of their optimizer memory. Bytes of
    an allocator (CUDA) are exact; resident peaks (CPU) count from 500 MB on and within 15 %: a
    smaller lead decides nothing. Reproduced needs a record of every rival.
    """
    runs = data.runs[data.runs["task"] == "memory"]
    if any(key not in runs for key in PEAKS):
        sentence = "No cell of this study recorded the peak of an optimizer step."
        return answer(claim, subject, data, "not tested", sentence)
    runs = runs.assign(micro_batch=[config.get("micro_batch") for config in runs["config"]])
    # A peak with the holes of the heap is no rival's beside one without (task.exact_peaks).
    runs = runs.assign(method=words(runs, "memory_method"))
    runs = uncapped(runs)  # a search under a cap is another question
    runs = runs.assign(step_peak=runs[list(PEAKS)].max(axis=1, skipna=False))
    mine = runs[(runs["optimizer"] == optimizer) & runs["precision"].isin(claim.precisions)]
    if mine.empty:
        sentence = f"No memory cell of {optimizer} in {listed(claim.precisions)}."
        return answer(claim, subject, data, "not tested", sentence)
    rivals = runs[runs["optimizer"].isin(claim.rivals)]
    keys = list(dict.fromkeys([*GROUP, *compared(claim.allow_different)]))
    parts = []
    for _, group in mine.groupby(keys, dropna=False, sort=True):
        beside = rivals
        for key in keys:
            beside = beside[beside[key] == group[key].iloc[0]]
        parts.append(judge_group(claim, subject, group, beside, data))
    return overall(claim, subject, data, tuple(parts), smallest_lead)


def smallest_lead(verdict: Verdict) -> float:
    """How bad a condition is for the claim: the smaller the lead, the worse."""
    return -math.inf if verdict.estimate is None else -verdict.estimate


def judge_group(
    claim: Claim, subject: str, mine: pd.DataFrame, beside: pd.DataFrame, data: StudyData
) -> Verdict:
    """One model, length, precision and micro-batch."""
    first = mine.iloc[0]
    scope = f"{first['model']}, {first['seq_len']} tokens, {first['precision']}"
    measured = beside[beside["step_peak"].gt(0)]
    exceeded = beside[
        (beside["status"] == "oom") & ~beside["optimizer"].isin(measured["optimizer"])
    ]
    seen = {*measured["optimizer"], *exceeded["optimizer"]}
    absent = [name for name in claim.rivals if name not in seen]
    notes = [f"Not measured here: {listed(absent)}."] if absent else []
    names = [f"{row['optimizer']} ({row['id']})" for row in exceeded.to_dict("records")]
    notes += [f"Out of memory, which is more: {listed(names)}."] if names else []
    notes += filter(None, [warning(mine, beside, claim.allow_different)] if len(beside) else [])
    own = mine[mine["step_peak"].gt(0)]
    if own.empty or measured.empty:
        statuses = listed(f"{row['status']} ({row['id']})" for row in mine.to_dict("records"))
        why = f"this cell ended {statuses}" if own.empty else "no rival has a peak"
        verdict = "refuted" if own.empty and not measured.empty and (
            mine["status"] == "oom").all() else "not tested"  # fmt: skip
        sentence = " ".join([f"At {scope} {why}.", *notes])
        return answer(claim, subject, data, verdict, sentence, scope=scope, cells=tuple(mine["id"]))
    best = own.sort_values("step_peak").iloc[-1]
    rival = measured.sort_values("step_peak").iloc[0]
    lead = float(rival["step_peak"] / best["step_peak"])
    verdict, why = decide(lead, best, rival, absent)
    rows = measured.sort_values("step_peak").to_dict("records")
    others = listed(f"{row['optimizer']} {byte_text(row['step_peak'])}" for row in rows)
    sentence = (
        f"At {scope} the peak during a step, weights and gradients included, is "
        f"{byte_text(best['step_peak'])} with {best['optimizer']}; {others}. "
        f"The closest takes {number_text(lead, 2)} times as much."
    )
    return answer(
        claim, subject, data, verdict, " ".join([sentence, why, *notes]), scope=scope,
        estimate=lead, margin=1.0, unit=UNIT, n=len(measured["optimizer"].unique()),
        n_of="rivals", cells=tuple(dict.fromkeys([*own["id"], *measured["id"], *exceeded["id"]])),
    )  # fmt: skip


def decide(lead: float, own: pd.Series, rival: pd.Series, absent: list[str]) -> tuple[str, str]:
    """The verdict on a lead, given the error of the meter, and why."""
    error = CPU_ERROR if own["device"] == "cpu" else 0.0
    if own["device"] == "cpu" and min(own["step_peak"], rival["step_peak"]) < LEAST_CPU_BYTES:
        return "not tested", "On a CPU peaks below 500 MB are not comparable."
    if lead < 1 / (1 + error):
        return "refuted", "A rival's peak is lower."
    if lead <= 1 + error:
        return "inconclusive", (
            f"That is within the {error:.0%} to which resident peaks are known."
            if error
            else "They are equal."
        )
    if absent:
        return "inconclusive", "It is the lowest measured, but rivals are missing."
    return "reproduced", "It is the lowest of all."
