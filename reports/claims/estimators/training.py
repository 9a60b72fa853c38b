"""Claims on how training goes: loss spikes, tokens to a target, what a wrong rate costs."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from reports.claims.claim import Claim, Verdict
from reports.claims.estimators.outcomes import Condition, Measure, Outcome, Seeds, lower_than, split
from reports.claims.paired import by_seeds, trouble
from reports.data.load import StudyData
from reports.data.values import metric, rates, setting
from reports.stats.paired_tests import better

PANEL = ("model", "seq_len", "precision")
SAME_RATE = 1e-9  # relative; a product of floats may end in another digit
Row = Mapping[Any, Any]


def loss_spikes(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """Fewer loss spikes than each baseline, in each part of the study.

    Arms may have rates of their own, but each of them one alone in a part. The number of a
    run is `loss_spikes_total`; a run that diverged counts as worse than any number.
    """
    return lower_than(claim, subject, optimizer, data, COUNTS)


def tokens_to_target(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """Fewer tokens to `task.target_loss` than each baseline, as the ratio of paired runs."""
    return lower_than(claim, subject, optimizer, data, TOKENS)


def wrong_rate(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """Less loss than each baseline from taking `rate_factors` times its own best learning rate.

    A run at f times its optimizer's reference rate (`reference_rate`, which the study must have put
    at the best one) is compared with the run of the same optimizer and seeds there; what the final
    loss is above that one's is then compared between optimizers, paired by seed.
    """
    if not claim.rate_factors:
        raise ValueError(f"Claim {claim.id} needs rate_factors.")
    measure = Measure(
        conditions=partial(rate_conditions, factors=claim.rate_factors),
        outcomes=penalties,
        noun="the rise of the final loss differs by",
        unit="nats/token",
        infinite="diverged",
        absent="trained at one rate and at all factors of it that the claim names",
        objection=best_is_elsewhere,
    )
    return lower_than(claim, subject, optimizer, data, measure)


def outcomes(condition: Condition, of: Any) -> dict[Seeds, Outcome]:
    """The number `of` each run that finished; inf where it diverged."""
    return {seeds: outcome(row, of) for seeds, row in by_seeds(condition.cells).items()}


def outcome(row: Row, of: Any) -> Outcome:
    """One run's outcome: its number, inf where it diverged, else why there is none."""
    cells, why = (str(row["id"]),), trouble(row)
    if why == "diverged":
        return Outcome(math.inf, cells)
    value = math.nan if why else float(of(row))
    return Outcome(value, cells, why or ("has no such number" if math.isnan(value) else ""))


def log_tokens(row: Row) -> float:
    """The log of the tokens to the target; inf where the run did not reach it."""
    tokens = row["tokens_to_target"]
    if math.isnan(tokens):
        return math.inf
    return math.log(tokens) if tokens > 0 else math.nan  # the target was none: the start lay below


def spike_conditions(cells: pd.DataFrame) -> dict[Any, Condition]:
    """Cells that counted spikes by part, model, length and precision."""
    counted = cells.assign(loss_spikes_total=metric(cells, "loss_spikes_total"))
    known = counted[counted["loss_spikes_total"].notna() | counted["status"].ne("done")]
    if known["loss_spikes_total"].isna().all():
        return {}
    return {
        key: Condition(f"{key[0]}, {named(key[1:])}", group, (group,))
        for key, group in split(known, ["part", *PANEL]).items()
    }


def target_conditions(cells: pd.DataFrame) -> dict[Any, Condition]:
    """Cells with a target loss by model, length, precision, steps and target."""
    aimed = cells.assign(
        tokens_to_target=metric(cells, "tokens_to_target"),
        target=pd.to_numeric(setting(cells, "task", "target_loss")),
    )
    aimed = aimed[aimed["target"].notna()]
    return {
        key: Condition(f"{named(key[:3])} to {key[4]:g} nats", group, (group,))
        for key, group in split(aimed, [*PANEL, "planned_steps", "target"]).items()
    }


def rate_conditions(cells: pd.DataFrame, factors: Sequence[float]) -> dict[Any, Condition]:
    """Cells at each of `factors` times the reference rate with those at it, by `split`'s keys.

    Keys are model, length, precision, steps and factor. Factors are found again from the rates: a
    record has the product alone, which is what was computed and what its identity rests on.
    """
    swept, found = cells.assign(rate=rates(cells)), {}
    for key, group in split(swept, [*PANEL, "planned_steps"]).items():
        reference = reference_rate(group["rate"], factors)
        if reference is None:
            continue
        best = group[np.isclose(group["rate"], reference, rtol=SAME_RATE, atol=0)]
        for factor in factors:
            wrong = group[np.isclose(group["rate"], factor * reference, rtol=SAME_RATE, atol=0)]
            both = pd.concat([wrong, best])
            found[(*key, factor)] = Condition(named(key[:3], factor), both, (wrong, best))
    return found


def reference_rate(swept: pd.Series, factors: Sequence[float]) -> float | None:
    """The lowest of one arm's rates of which all `factors` were trained too; None for none.

    All, since an arm whose cells at the reference are not there yet would start from the next one.
    """
    known = np.sort(swept.unique())
    for rate in known:
        if all(
            np.isclose(known, factor * rate, rtol=SAME_RATE, atol=0).any() for factor in factors
        ):
            return float(rate)
    return None


def penalties(condition: Condition) -> dict[Seeds, Outcome]:
    """The final loss at the wrong rate less that at the best one, by seeds."""
    wrong, best = map(by_seeds, condition.compared)
    found = {}
    for seeds, row in wrong.items():
        own = best.get(seeds)
        lacking = trouble(own)  # without its own best run a rise is not known
        if own is None or lacking:
            found[seeds] = Outcome(math.nan, (), f"at its best rate {lacking}")
            continue
        reference = float(own["final_eval_loss"])
        risen = outcome(row, lambda row, less=reference: row["final_eval_loss"] - less)
        found[seeds] = Outcome(risen.value, (*risen.cells, str(own["id"])), risen.trouble)
    return found


def best_is_elsewhere(condition: Condition) -> str:
    """Why the reference is not the best rate, so that a rise from it says little; "" if it is."""
    rises = [item.value for item in penalties(condition).values() if not item.trouble]
    if len(rises) < 2 or any(map(math.isinf, rises)):
        return ""
    if better(rises).verdict != "reproduced":
        return ""
    name = condition.cells["optimizer"].iloc[0]
    return f"Open: {name} is better at this factor than at the rate that was taken as its best."


def named(panel: Sequence[Any], factor: float = 1.0) -> str:
    """A condition in words: gpt2_tiny, 128 tokens, 4 times the rate."""
    words = [str(panel[0]), f"{panel[1]} tokens"]
    words += [str(panel[2])] if panel[2] != "fp32" else []
    words += [f"{factor:g} times the rate"] if factor != 1 else []
    return ", ".join(words)


COUNTS = Measure(
    conditions=spike_conditions,
    outcomes=partial(outcomes, of=lambda row: row["loss_spikes_total"]),
    noun="loss spikes",
    unit="spikes a run",
    infinite="diverged",
    absent="counted its loss spikes",
    is_count=True,
    needs_test_split=False,
)
TOKENS = Measure(
    conditions=target_conditions,
    outcomes=partial(outcomes, of=log_tokens),
    noun="the target is reached after",
    unit="times the baseline's tokens",
    infinite="never reached the target",
    absent="trained towards a task.target_loss",
    is_log=True,
)


ESTIMATORS = (loss_spikes, tokens_to_target, wrong_rate)
