"""Verdicts on the time of an optimizer step: ratios of interleaved processes, judged on logs."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd

from reports.claims.claim import Claim, Verdict, answer
from reports.claims.combine import overall
from reports.claims.estimators.memory import uncapped
from reports.claims.paired import interim, planned
from reports.data.load import StudyData
from reports.data.pairing import compared, nearest, unfinished, warning
from reports.data.text import TIMES, listed, number_text, plural
from reports.data.turns import not_in_turns
from reports.stats.intervals import Interval, ratio_interval
from reports.stats.paired_tests import tail
from reports.stats.power import required_n, upper_sd

SEEDS = ["model_seed", "data_seed"]
GROUP = ("model", "seq_len", "precision", "threads")
SECONDS = "step_median_seconds"
ALPHA = 0.025  # each side of the 95 % interval
UNIT = f"{TIMES} its time"


def step_time(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """Subject's over baseline's median seconds of an optimizer step, at most `threshold`.

    A pair is one turn: two processes with the same seeds (cells of task=memory), or one process in
    which both took turns step by step (gefen-step). The geometric mean over turns has a 95 % t
    interval on logs: reproduced when it lies below the threshold, refuted when above.
    """
    if claim.threshold is None:
        raise ValueError(f"Claim {claim.id} needs a threshold.")
    timed = uncapped(data.runs[data.runs["task"].isin(["memory", "step"])])
    mine = timed[timed["optimizer"] == optimizer]
    fitting = mine
    for key, wanted in (("device", claim.devices), ("model", claim.models)):
        fitting = fitting[fitting[key].isin(wanted)] if wanted else fitting
    if fitting.empty:
        return answer(claim, subject, data, "not tested", why_untested(claim, optimizer, mine))
    keys = list(dict.fromkeys([*GROUP, *compared(claim.allow_different)]))
    groups = [group for _, group in fitting.groupby(keys, dropna=False, sort=True)]
    names = claim.baselines or [claim.baseline]
    conditions = len(groups) * len(names)
    parts = [
        judge_group(claim, subject, group, timed[named(timed, name)], name, data, conditions)
        for name in names
        for group in groups
    ]
    found = overall(claim, subject, data, tuple(parts), upper_bound, lower_bound, ALPHA)
    unseen = [name for name in claim.models if name not in set(fitting["model"])]
    if found.verdict != "reproduced" or not unseen:
        return found
    sentence = f"{found.sentence} Open: models of the claim without a record: {listed(unseen)}."
    return replace(found, verdict="inconclusive", sentence=sentence)


def named(runs: pd.DataFrame, name: str) -> "pd.Series[bool]":
    """Cells that ran optimizer `name`, or `NAME_fused`, `_foreach`, `_loop` by its options."""
    return runs["optimizer"].eq(name) | pd.Series(
        [spelled(row) == name for row in runs.to_dict("records")], index=runs.index, dtype=bool
    )


def spelled(row: dict[Any, Any]) -> str:
    """An optimizer's name with the way it executes, where its options name one."""
    options = (row["config"] or {}).get("optimizer", {}).get("options") or {}
    if options.get("fused") is True:
        return f"{row['optimizer']}_fused"
    if options.get("foreach") is True:
        return f"{row['optimizer']}_foreach"
    is_loop = options.get("fused") is False and options.get("foreach") is False
    return f"{row['optimizer']}_loop" if is_loop else str(row["optimizer"])


def upper_bound(verdict: Verdict) -> float:
    """How bad a condition is for the claim; without an interval the estimate itself."""
    if verdict.interval:
        return verdict.interval[1]
    return math.inf if verdict.estimate is None else verdict.estimate


def lower_bound(verdict: Verdict) -> float:
    """How clearly a condition refutes."""
    return verdict.interval[0] if verdict.interval else -math.inf


def judge_group(
    claim: Claim,
    subject: str,
    mine: pd.DataFrame,
    base: pd.DataFrame,
    name: str,
    data: StudyData,
    conditions: int = 1,
) -> Verdict:
    """One of `conditions`: pair the turns, check that they are turns, and judge the ratio."""
    first = mine.iloc[0]
    scope = f"{first['model']}, {first['precision']}, {first['device']}, against {name}"

    def open_answer(verdict: str, sentence: str, **more: Any) -> Verdict:
        return answer(claim, subject, data, verdict, sentence, scope=scope, **more)

    near = base[(base["model"] == first["model"])]
    if near.empty:
        return open_answer("not tested", f"No cell timed {name} on {first['model']}.")
    keys = [key for key in (*GROUP, *compared(())) if key not in claim.allow_different]
    same = near
    for key in dict.fromkeys(keys):
        absent = pd.isna(first[key])
        same = same[same[key].isna() if absent else same[key] == first[key]]
    if same.empty:
        apart = nearest(first.to_dict(), near.to_dict("records"), list(dict.fromkeys(keys)))
        return open_answer("not tested", f"At {scope}: cannot be compared: {'; '.join(apart)}.")
    if mine.duplicated(SEEDS).any() or same.duplicated(SEEDS).any():
        cells = (*mine["id"], *same["id"])
        sentence = f"At {scope} several cells have the same seeds, so turns cannot be told apart."
        return open_answer("not tested", sentence, cells=cells)
    found = judge_turns(claim, mine, same, scope, open_answer, conditions)
    return interim(found, *planned(pd.concat([mine, same]), data.pending))


def judge_turns(
    claim: Claim,
    mine: pd.DataFrame,
    base: pd.DataFrame,
    scope: str,
    respond: Callable[..., Verdict],
    conditions: int,
) -> Verdict:
    """The turns of one condition: those with both times, if they were turns, and their ratio."""
    turns = mine.merge(base, on=SEEDS, suffixes=("", "_base"))
    turns = turns[turns[SECONDS].gt(0) & turns[f"{SECONDS}_base"].gt(0)]
    failed = unfinished(pd.concat([mine, base]))
    notes = [f"Without a result: {'; '.join(failed)}."] if failed else []
    notes += filter(None, [warning(mine, base, claim.allow_different)])
    if turns.empty:
        sentence = f"At {scope} no turn has both times."
        return respond("not tested", " ".join([sentence, *notes]))
    cells = tuple(dict.fromkeys([*turns["id"], *turns["id_base"]]))
    mixed = not_in_turns(turns.to_dict("records"))
    if mixed:
        sentence = f"At {scope} the processes did not take turns, so a load of the machine could"
        return respond("not tested", f"{sentence} count for one side: {mixed}.", cells=cells)
    ratio = ratio_interval(turns[SECONDS].tolist(), turns[f"{SECONDS}_base"].tolist())
    found = judge_ratio(claim, ratio, cells, notes, scope, respond, conditions)
    if failed and found.verdict == "reproduced":
        sentence = f"{found.sentence} Open, since turns of the claim failed."
        return replace(found, verdict="inconclusive", sentence=sentence)
    return found


def judge_ratio(
    claim: Claim,
    found: Interval,
    cells: tuple[str, ...],
    notes: list[str],
    scope: str,
    respond: Callable[..., Verdict],
    conditions: int = 1,
) -> Verdict:
    """The verdict on one ratio with its interval."""
    assert claim.threshold is not None
    limit = claim.threshold
    is_bounded = not math.isnan(found.upper)
    verdict, why = decide(claim, found, limit, conditions)
    error = found.sd / math.sqrt(found.n)
    p = tail(math.log(limit / found.estimate), error, found.n - 1) if is_bounded else None
    bounds = (
        f"95 % interval {number_text(found.lower, 2)} to {number_text(found.upper, 2)}"
        if is_bounded
        else "no spread known"
    )
    sentence = (
        f"At {scope}: an optimizer step takes {number_text(found.estimate, 2)} times as long "
        f"({bounds}, {found.n} turns); the claim asks for {number_text(limit, 2)} or less. {why}"
    )
    return respond(
        verdict, " ".join([sentence, *notes]), estimate=found.estimate,
        interval=(found.lower, found.upper) if is_bounded else None,
        interval_kind="95 % interval on logs" if is_bounded else "", margin=limit, unit=UNIT,
        n=found.n, n_of="turns", cells=cells, p_refuted=p,
    )  # fmt: skip


def decide(claim: Claim, found: Interval, limit: float, conditions: int = 1) -> tuple[str, str]:
    """The verdict of an interval beside the limit, why, and how many turns would settle it."""
    if found.n >= claim.min_seeds and found.upper <= limit:
        return "reproduced", "The upper bound is within it."
    if found.n >= claim.min_seeds and found.lower > limit:
        return "refuted", "The lower bound is above it."
    few = f"A verdict needs at least {claim.min_seeds} turns."
    why = few if found.n < claim.min_seeds else "The interval encloses it."
    if math.isnan(found.upper):
        return "inconclusive", why
    return "inconclusive", f"{why} {turns_needed(claim, found, limit, conditions)}"


def turns_needed(claim: Claim, found: Interval, limit: float, conditions: int) -> str:
    """Fresh turns for the planned power if the true ratio is the observed one.

    At the upper 80 % limit of the spread. Reproduced takes all conditions, each then at
    power ** (1 / conditions); refuted takes one, at alpha / conditions.
    """
    sd, distance = upper_sd(found.sd, found.n), math.log(limit / found.estimate)
    if distance > 0:
        target, word, alpha = claim.power ** (1 / conditions), "reproduce", ALPHA
    else:
        target, word, alpha = claim.power, "refute", ALPHA / conditions
    n = required_n(sd, abs(distance), alpha, target)
    count = "more than 100,000" if n is None else plural(max(n, claim.min_seeds), "fresh turn")
    return (
        f"At the upper 80% limit of the spread {target:.0%} power to {word} takes {count} "
        "judged alone, if the true ratio is the observed one."
    )


def why_untested(claim: Claim, optimizer: str, mine: pd.DataFrame) -> str:
    """Why no timed cell fits the claim, and what was timed instead."""
    wanted = " on ".join(filter(None, [listed(claim.models), listed(claim.devices)]))
    done = mine[mine[SECONDS].gt(0)]
    head = f"No record timed {optimizer}'s step on {wanted or 'any model'}"
    if done.empty:
        return f"{head}."
    places = sorted({f"{row['model']} ({row['device']})" for row in done.to_dict("records")})
    return f"{head}; it was timed on {listed(places)}."


ESTIMATORS = (step_time,)
