"""Verdicts on the time of an optimizer step: ratios of interleaved processes, judged on logs."""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from reports.claims import Claim, Verdict, answer
from reports.combine import overall
from reports.failed_cells import uncapped
from reports.load import StudyData
from reports.pairing import compared, nearest, unfinished, warning
from reports.statistics import Interval, ratio_interval, required_n
from reports.text import TIMES, listed, number_text

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
    parts = []
    groups = [*GROUP, *compared(claim.allow_different)]
    for baseline in claim.baselines or [claim.baseline]:
        base = timed[named(timed, baseline)]
        for _, group in fitting.groupby(list(dict.fromkeys(groups)), dropna=False, sort=True):
            parts.append(judge_group(claim, subject, group, base, baseline, data))
    return overall(claim, subject, data, tuple(parts), upper_bound)


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


def judge_group(
    claim: Claim, subject: str, mine: pd.DataFrame, base: pd.DataFrame, name: str, data: StudyData
) -> Verdict:
    """One condition: pair the turns, check that they are turns, and judge the ratio."""
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
    turns = mine.merge(same, on=SEEDS, suffixes=("", "_base"))
    turns = turns[turns[SECONDS].gt(0) & turns[f"{SECONDS}_base"].gt(0)]
    notes = [f"Without a result: {'; '.join(names)}." for names in
             [unfinished(pd.concat([mine, same]))] if names]  # fmt: skip
    notes += filter(None, [warning(mine, same, claim.allow_different)])
    if turns.empty:
        sentence = f"At {scope} no turn has both times."
        return open_answer("not tested", " ".join([sentence, *notes]))
    cells = tuple(dict.fromkeys([*turns["id"], *turns["id_base"]]))
    if not interleaved(turns):
        sentence = f"At {scope} the processes did not take turns: a load of the machine would count"
        return open_answer("not tested", f"{sentence} for one side only.", cells=cells)
    found = ratio_interval(turns[SECONDS].tolist(), turns[f"{SECONDS}_base"].tolist())
    return judge_ratio(claim, found, cells, notes, scope, open_answer)


def judge_ratio(
    claim: Claim,
    found: Interval,
    cells: tuple[str, ...],
    notes: list[str],
    scope: str,
    respond: Callable[..., Verdict],
) -> Verdict:
    """The verdict on one ratio with its interval."""
    assert claim.threshold is not None
    limit = claim.threshold
    is_bounded = not math.isnan(found.upper)
    verdict, why = decide(claim, found, limit)
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
        n=found.n, n_of="turns", cells=cells,
    )  # fmt: skip


def decide(claim: Claim, found: Interval, limit: float) -> tuple[str, str]:
    """The verdict of an interval beside the limit, why, and how many turns would settle it."""
    if found.n >= claim.min_seeds and found.upper <= limit:
        return "reproduced", "The upper bound is within it."
    if found.n >= claim.min_seeds and found.lower > limit:
        return "refuted", "The lower bound is above it."
    few = f"A verdict needs at least {claim.min_seeds} turns."
    why = few if found.n < claim.min_seeds else "The interval encloses it."
    if math.isnan(found.upper):
        return "inconclusive", why
    n = required_n(found.sd, abs(math.log(limit / found.estimate)), ALPHA, claim.power)
    count = "more than 100,000" if n is None else f"{max(n, claim.min_seeds):,}"
    need = f"{claim.power:.0%} power takes {count} turns if the true ratio is the observed one."
    return "inconclusive", f"{why} {need}"


def interleaved(turns: pd.DataFrame) -> bool:
    """Whether each turn had started both of its processes before the next turn began.

    Turns inside one process, and records without a start, are taken at their word.
    """
    if (turns["id"].str.contains("/") | turns["started_utc"].isna()).any() or len(turns) < 2:
        return True
    starts = turns[["started_utc", "started_utc_base"]].apply(pd.to_datetime, utc=True)
    ordered = starts.assign(first=starts.min(axis=1), last=starts.max(axis=1)).sort_values("first")
    return bool(
        (ordered["last"].iloc[:-1].to_numpy() <= ordered["first"].iloc[1:].to_numpy()).all()
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
