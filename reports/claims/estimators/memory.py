"""Verdicts on bytes: counted optimizer state, what is stated of it, and peaks.

Bytes are deterministic: no interval, the range over models.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from reports.claims.claim import Claim, Verdict, answer
from reports.claims.combine import overall
from reports.data.load import StudyData, each
from reports.data.pairing import compared, counted, match_states, several, unfinished, warning
from reports.data.text import (
    GIB,
    TIMES,
    byte_text,
    count_text,
    listed,
    number_text,
    plural,
    span,
    with_unit,
)
from reports.data.values import capped, words

POOLED = ("code_hash", "device")  # one verdict takes its models from records of one kind
GROUP = ("model", "seq_len", "precision", "micro_batch", "method")
PEAKS = ("peak_first_step_bytes", "peak_steady_step_bytes")
LEAST_CPU_BYTES = 500_000_000  # below, a resident peak says more about the process than the step
CPU_ERROR = 0.15
UNIT = "times (the closest rival's peak, weights and gradients included, over its own)"
Measure = Callable[[pd.DataFrame], pd.Series]


@dataclass(frozen=True)
class Quantity:
    """What is computed of every pair of cells, in which unit, and which side of a claim is good."""

    measure: Measure
    unit: str
    at_most: bool = False
    decimals: int = 2


def state_ratio(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """Counted baseline bytes / counted subject bytes, at least `threshold` on every model."""

    def ratio(pairs: pd.DataFrame) -> pd.Series:
        return pairs["baseline_bytes"] / pairs["state_bytes"]

    return judge(claim, subject, optimizer, data, Quantity(ratio, f"{TIMES} smaller"))


def state_saving(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """GiB saved for each billion parameters, at least `threshold` (less `tolerance`)."""

    def saving(pairs: pd.DataFrame) -> pd.Series:
        saved = pairs["baseline_bytes"] - pairs["state_bytes"]
        return saved / pairs["parameters"] * 1e9 / GIB

    unit = "GiB per billion parameters saved"
    return judge(claim, subject, optimizer, data, Quantity(saving, unit))


def state_per_parameter(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """Counted state bytes for each parameter, at most `threshold` on every model of the claim."""

    def bytes_each(cells: pd.DataFrame) -> pd.Series:
        return cells["state_bytes"] / cells["parameters"]

    quantity = Quantity(bytes_each, "bytes per parameter", at_most=True, decimals=3)
    return judge(claim, subject, optimizer, data, quantity)


def judge(
    claim: Claim, subject: str, optimizer: str, data: StudyData, quantity: Quantity
) -> Verdict:
    """Compare the quantity of every fitting cell (and its partner) with the claim's threshold."""
    if claim.threshold is None:
        raise ValueError(f"Claim {claim.id} needs a threshold.")
    alone = quantity.at_most  # a bound on the subject's own bytes needs no baseline
    matched = match_states(data.runs, claim.baseline, claim.allow_different)
    mine = matched[matched["optimizer"] == optimizer]
    if claim.models:
        mine = mine[mine["model"].isin(claim.models)]
    large = mine[mine["parameters"] >= claim.min_parameters]
    fitting = large[large["precision"].isin(claim.precisions)]
    pairs = fitting if alone else fitting[fitting["baseline_bytes"].notna()]
    if pairs.empty:
        reason = [why_untested(claim, mine, fitting), *failed(own_failures(claim, optimizer, data))]
        return answer(claim, subject, data, "not tested", " ".join(reason))
    cells = tuple(dict.fromkeys([*pairs["id"], *pairs["baseline_id"].dropna()]))
    cells = tuple(pairs["id"]) if alone else cells
    behind = data.runs[data.runs["id"].isin(cells)]
    pooled = several(behind, [key for key in POOLED if key in compared(claim.allow_different)])
    if pooled:
        refusal = f"The cells cannot be judged together: they differ in {pooled}."
        return answer(claim, subject, data, "not tested", refusal, cells=cells)
    values = quantity.measure(pairs)
    low, high = float(values.min()), float(values.max())
    verdict, bound = decide(claim, quantity, low, high)
    lost, gaps = lost_models(claim, optimizer, data), unmeasured(claim, pairs)
    if verdict == "reproduced" and (lost or gaps):
        verdict = "inconclusive"
    said = [
        *summary(claim, optimizer, quantity, (low, high), pairs, bound),
        *(["Open, since the subject failed on a model of the claim."] if lost else []),
        *(["Open, since not all that the claim names was measured."] if gaps else []),
        *gaps,
        *remarks(claim, large, fitting, quantity),
        *failed(own_failures(claim, optimizer, data)),
    ]
    sides = behind["optimizer"].eq(optimizer)
    said.append(warning(behind[sides], behind[~sides], claim.allow_different))
    return answer(
        claim, subject, data, verdict, " ".join(filter(None, said)), unit=quantity.unit,
        estimate=high if alone else low, interval=(low, high), interval_kind="range over models",
        margin=claim.threshold, n=pairs["model"].nunique(), n_of="models", cells=cells,
    )  # fmt: skip


def summary(
    claim: Claim,
    optimizer: str,
    quantity: Quantity,
    interval: tuple[float, float],
    pairs: pd.DataFrame,
    bound: str,
) -> list[str]:
    """What was found, where, and what the claim asks for."""
    found = with_unit(span(*interval, quantity.decimals), quantity.unit)
    beside = "" if quantity.at_most else f" beside {claim.baseline}"
    asked = number_text(claim.threshold, quantity.decimals)
    return [
        f"Counted state of {optimizer}{beside} (with tables outside it, where recorded): {found}",
        f"on {where(pairs)};",
        f"the claim asks for {asked} {bound}.",
    ]


def decide(claim: Claim, quantity: Quantity, low: float, high: float) -> tuple[str, str]:
    """The verdict of a range beside the threshold, and the words that say the bound."""
    assert claim.threshold is not None
    within = f"within {claim.tolerance:.0%}"
    if quantity.at_most:
        holds = high <= claim.threshold * (1 + claim.tolerance)
        words = within if claim.tolerance else "or less"
    else:
        holds = low >= claim.threshold * (1 - claim.tolerance)
        words = within if claim.tolerance else "or more"
    return ("reproduced" if holds else "refuted"), words


def where(pairs: pd.DataFrame) -> str:
    """The models with their sizes, and the precisions."""
    sizes = pairs.drop_duplicates("model")
    models = [f"{row.model} ({count_text(row.parameters)})" for row in each(sizes)]
    return f"{listed(models)} in {listed(sorted(set(pairs['precision'])))}"


def unmeasured(claim: Claim, pairs: pd.DataFrame) -> list[str]:
    """What the claim names and no cell behind the verdict measured, as sentences."""
    found = []
    absent = [name for name in claim.precisions if name not in set(pairs["precision"])]
    if absent:
        found.append(f"Not measured: {listed(absent)}.")
    unseen = [name for name in claim.models if name not in set(pairs["model"])]
    if unseen:
        found.append(f"Models of the claim without a record: {listed(unseen)}.")
    return found


def remarks(
    claim: Claim, large: pd.DataFrame, fitting: pd.DataFrame, quantity: Quantity
) -> list[str]:
    """What stands beside the verdict: other precisions and refused cells."""
    found: list[str] = []
    partnered = large if quantity.at_most else large[large["baseline_bytes"].notna()]
    beside = partnered[partnered["precision"].isin(claim.beside)]
    if not beside.empty:
        values = quantity.measure(beside)
        names = listed(sorted(set(beside["precision"])))
        text = span(values.min(), values.max(), quantity.decimals)
        ids = listed(dict.fromkeys([*beside["id"], *beside["baseline_id"].dropna()]))
        found.append(f"Beside it, {names}: {with_unit(text, quantity.unit)} ({ids}).")
    refused = fitting[fitting["baseline_bytes"].isna()]
    if not refused.empty and not quantity.at_most:
        count = plural(len(refused), "cell")
        found.append(f"Not compared: {count} ({'; '.join(sorted(set(refused['reason'])))}).")
    return found


def why_untested(claim: Claim, mine: pd.DataFrame, fitting: pd.DataFrame) -> str:
    """Why no cell (or pair of cells) can answer the claim."""
    if not fitting.empty:
        return f"No two cells can be compared: {'; '.join(sorted(set(fitting['reason'])))}."
    least = count_text(claim.min_parameters)
    allowed = listed(claim.precisions)
    if mine.empty:
        of = f" on {listed(claim.models)}" if claim.models else ""
        return f"No cell of this subject counted its optimizer state{of}."
    largest = mine.sort_values("parameters").iloc[-1]
    return (
        f"The claim needs a model of at least {least} parameters in {allowed}; the largest "
        f"measured is {largest['model']} ({count_text(largest['parameters'])}, "
        f"{largest['precision']})."
    )


def stated_state(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """Counted state bytes against the closed form that the registry states for the optimizer.

    The estimate is the largest |counted / stated - 1| over cells, in percent; the threshold is a
    fraction. A deviation in either direction counts: then the statement is wrong. Tables outside
    the state are no part of the closed form, so they are left out here. Bytes do not depend on the
    seed: n is the number of models and precisions.
    """
    if claim.threshold is None:
        raise ValueError(f"Claim {claim.id} needs a threshold.")
    mine = data.runs[data.runs["optimizer"] == optimizer]
    cells = counted(mine)
    cells = cells[cells["optimizer_state_predicted_bytes"] > 0]
    if cells.empty:
        sentence = f"No cell of {optimizer} has both counted and stated state bytes."
        return answer(claim, subject, data, "not tested", " ".join([sentence, *failed(mine)]))
    ratio = cells["optimizer_state_bytes"] / cells["optimizer_state_predicted_bytes"]
    ordered = cells.assign(ratio=ratio, off=(ratio - 1).abs()).sort_values("off")
    worst = ordered.iloc[-1]
    off = float(worst["off"])
    sentence = (
        f"State of {optimizer}: counted bytes are {number_text(worst['ratio'], 4)} times the "
        f"stated ones where they are furthest apart ({worst['model']}); the claim allows "
        f"{claim.threshold:.1%} of difference."
    )
    low, high = (100 * (float(bound) - 1) for bound in (ratio.min(), ratio.max()))
    return answer(
        claim, subject, data, "reproduced" if off <= claim.threshold else "refuted",
        " ".join([sentence, *failed(mine)]), estimate=100 * off, interval=(low, high),
        interval_kind="signed range over cells", margin=100 * claim.threshold,
        unit="% off the stated bytes",
        n=len(cells[["model", "precision"]].drop_duplicates()), n_of="models and precisions",
        cells=tuple(cells["id"]),
    )  # fmt: skip


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
        parts.append(judge_peaks(claim, subject, group, beside, data))
    return overall(claim, subject, data, tuple(parts), smallest_lead)


def smallest_lead(verdict: Verdict) -> float:
    """How bad a condition is for the claim: the smaller the lead, the worse."""
    return -math.inf if verdict.estimate is None else -verdict.estimate


def judge_peaks(
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
    verdict, why = decide_lead(lead, best, rival, absent)
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


def decide_lead(
    lead: float, own: pd.Series, rival: pd.Series, absent: list[str]
) -> tuple[str, str]:
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


def uncapped(runs: pd.DataFrame) -> pd.DataFrame:
    """Cells without a memory cap: a search under one runs out of memory on purpose."""
    return runs[~capped(runs)]


def own_failures(claim: Claim, optimizer: str, data: StudyData) -> pd.DataFrame:
    """Memory cells of the subject or the baseline that ended without a result."""
    runs = uncapped(data.runs[(data.runs["task"] == "memory") & (data.runs["status"] != "done")])
    return runs[runs["optimizer"].isin([optimizer, claim.baseline])]


def lost_models(claim: Claim, optimizer: str, data: StudyData) -> list[str]:
    """Failed cells of the subject whose conditions the subject counted in no other cell."""
    failures = own_failures(claim, optimizer, data)
    failures = failures[failures["optimizer"] == optimizer]
    failures = failures[failures["precision"].isin(claim.precisions)]
    whole = counted(data.runs[data.runs["optimizer"] == optimizer])
    known = set(zip(whole["model"], whole["precision"], strict=True))
    return [
        str(row["id"])
        for row in failures.to_dict("records")
        if (row["model"], row["precision"]) not in known
    ]


def failed(cells: pd.DataFrame) -> list[str]:
    """The sentence that names cells without a result, as a list of none or one."""
    names = unfinished(cells)
    return [f"Without a result: {'; '.join(names)}."] if names else []


ESTIMATORS = (state_ratio, state_saving, state_per_parameter, stated_state, lowest_peak)
