"""Verdicts on counted optimizer-state bytes. Bytes are deterministic: no interval, a range."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from reports.claims.failed_cells import failed, lost_models, own_failures
from reports.claims.judge import Claim, Verdict, answer
from reports.data.load import StudyData, each
from reports.data.pairing import compared, match_states, several, warning
from reports.data.text import GIB, TIMES, count_text, listed, number_text, plural, span, with_unit

POOLED = ("code_hash", "device")  # one verdict takes its models from records of one kind
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
