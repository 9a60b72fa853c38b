"""Verdicts on counted optimizer-state bytes. Bytes are deterministic: no interval, a range."""

from collections.abc import Callable

import pandas as pd

from reports.claims import Claim, Verdict, answer
from reports.load import StudyData, each
from reports.pairing import match_states
from reports.text import GIB, TIMES, count_text, listed, number_text, plural, span, with_unit


def state_ratio(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """Counted baseline bytes / counted subject bytes, at least `threshold` on every model."""

    def ratio(pairs: pd.DataFrame) -> pd.Series:
        return pairs["baseline_bytes"] / pairs["state_bytes"]

    return judge(claim, subject, optimizer, data, ratio, f"{TIMES} smaller")


def state_saving(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """GiB saved for each billion parameters, at least `threshold` (less `tolerance`)."""

    def saving(pairs: pd.DataFrame) -> pd.Series:
        saved = pairs["baseline_bytes"] - pairs["state_bytes"]
        return saved / pairs["parameters"] * 1e9 / GIB

    return judge(claim, subject, optimizer, data, saving, "GiB per billion parameters saved")


def judge(
    claim: Claim,
    subject: str,
    optimizer: str,
    data: StudyData,
    measure: Callable[[pd.DataFrame], pd.Series],
    unit: str,
) -> Verdict:
    """Compare `measure` of every fitting pair of cells with the claim's threshold."""
    if claim.threshold is None:
        raise ValueError(f"Claim {claim.id} needs a threshold.")
    matched = match_states(data.runs, claim.baseline)
    mine = matched[matched["optimizer"] == optimizer]
    large = mine[mine["parameters"] >= claim.min_parameters]
    fitting = large[large["precision"].isin(claim.precisions)]
    pairs = fitting[fitting["baseline_bytes"].notna()]
    if pairs.empty:
        return answer(claim, subject, data, "not tested", why_untested(claim, mine, fitting))
    values = measure(pairs)
    low, high = float(values.min()), float(values.max())
    floor = claim.threshold * (1 - claim.tolerance)
    verdict = "reproduced" if low >= floor else "refuted"
    sentence = " ".join(
        [
            f"Counted state of {optimizer} beside {claim.baseline}:",
            f"{with_unit(span(low, high), unit)} on {where(pairs)};",
            f"the claim asks for {number_text(claim.threshold, 1)}"
            + (f" within {claim.tolerance:.0%}." if claim.tolerance else " or more."),
            *remarks(claim, large, fitting, measure, unit),
        ]
    )
    return answer(
        claim,
        subject,
        data,
        verdict,
        sentence,
        estimate=low,
        interval=(low, high),
        interval_kind="range over models",
        margin=claim.threshold,
        unit=unit,
        n=pairs["model"].nunique(),
        n_of="models",
        cells=tuple(dict.fromkeys([*pairs["id"], *pairs["baseline_id"]])),
    )


def where(pairs: pd.DataFrame) -> str:
    """The models with their sizes, and the precisions."""
    sizes = pairs.drop_duplicates("model")
    models = [f"{row.model} ({count_text(row.parameters)})" for row in each(sizes)]
    return f"{listed(models)} in {listed(sorted(set(pairs['precision'])))}"


def remarks(
    claim: Claim,
    large: pd.DataFrame,
    fitting: pd.DataFrame,
    measure: Callable[[pd.DataFrame], pd.Series],
    unit: str,
) -> list[str]:
    """What stands beside the verdict: other precisions, precisions not measured, refused cells."""
    found: list[str] = []
    absent = [name for name in claim.precisions if name not in set(fitting["precision"])]
    if absent:
        found.append(f"Not measured: {listed(absent)}.")
    beside = large[large["precision"].isin(claim.beside) & large["baseline_bytes"].notna()]
    if not beside.empty:
        values = measure(beside)
        names = listed(sorted(set(beside["precision"])))
        both = with_unit(span(values.min(), values.max()), unit)
        found.append(f"Beside it, {names}: {both}.")
    refused = fitting[fitting["baseline_bytes"].isna()]
    if not refused.empty:
        count = plural(len(refused), "cell")
        found.append(f"Not compared: {count} ({'; '.join(sorted(set(refused['reason'])))}).")
    return found


def why_untested(claim: Claim, mine: pd.DataFrame, fitting: pd.DataFrame) -> str:
    """Why no pair of cells can answer the claim."""
    if not fitting.empty:
        return f"No two cells can be compared: {'; '.join(sorted(set(fitting['reason'])))}."
    least = count_text(claim.min_parameters)
    allowed = listed(claim.precisions)
    if mine.empty:
        return "No cell of this subject counted its optimizer state."
    largest = mine.sort_values("parameters").iloc[-1]
    return (
        f"The claim needs a model of at least {least} parameters in {allowed}; the largest "
        f"measured is {largest['model']} ({count_text(largest['parameters'])}, "
        f"{largest['precision']})."
    )
