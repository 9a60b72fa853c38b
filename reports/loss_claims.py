"""The verdict on pretraining loss: paired, one-sided non-inferiority at the end of a schedule."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from reports.claims import Claim, Verdict, answer
from reports.load import StudyData, differing
from reports.pairing import COMPARED, nearest
from reports.statistics import PairedTest, noninferiority, required_n
from reports.text import listed, plural, signed

GROUP = ["model", "seq_len", "precision", "data_hash", "code_hash", "device", "planned_steps"]
CONDITIONS = (*COMPARED, "planned_steps")
SEEDS = ["model_seed", "data_seed"]
UNIT = "nats/token"
HARMLESS = (
    *("seed", "model_seed", "data_seed", "device", "part", "root", "cache"),
    *("tracker", "launch", "study", "task.log_every_steps", "task.checkpoint_every_steps"),
)


@dataclass
class Pairs:
    """The pairs of one condition: differences, pairs lost to divergence, and seeds left out."""

    differences: list[float] = field(default_factory=list)
    diverged: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Pairs that count, divergence of the candidate included."""
        return len(self.differences) + len(self.diverged)


def paired_loss(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """One verdict for each model and sequence length, and the overall one that holds them."""
    if data.study.get("demonstration"):
        sentence = "This study is a demonstration: too small for a verdict on loss."
        return answer(claim, subject, data, "not tested", sentence)
    trained = data.runs[data.runs["task"] == "pretrain"]
    mine = trained[trained["optimizer"] == optimizer]
    base = trained[trained["optimizer"] == claim.baseline]
    if mine.empty or base.empty:
        absent = optimizer if mine.empty else claim.baseline
        sentence = f"No cell of this study trained a model with {absent}."
        return answer(claim, subject, data, "not tested", sentence)
    parts = []
    for _, group in mine.groupby(GROUP, dropna=False, sort=True):
        near = base[(base["model"] == group["model"].iloc[0])]
        near = near[near["seq_len"] == group["seq_len"].iloc[0]]
        parts.append(judge_group(claim, subject, group, near, data))
    return overall(claim, subject, data, tuple(parts))


def overall(claim: Claim, subject: str, data: StudyData, parts: tuple[Verdict, ...]) -> Verdict:
    """Reproduced only if all parts are, refuted if any is, else inconclusive or not tested."""
    words = [part.verdict for part in parts]
    if "refuted" in words:
        verdict = "refuted"
    elif all(word == words[0] for word in words):
        verdict = words[0]
    else:
        verdict = "inconclusive"
    if len(parts) == 1:
        return replace(parts[0], scope="", parts=parts)
    counts = [f"{word} at {listed(at)}" for word, at in grouped(parts).items()]
    cells = tuple(dict.fromkeys(cell for part in parts for cell in part.cells))
    sentence = f"Over {len(parts)} conditions: {'; '.join(counts)}."
    numbers = [part for part in parts if part.estimate is not None]
    more: dict[str, Any] = {}
    if numbers:  # the condition that is worst for the claim stands for all
        worst = max(numbers, key=lambda part: part.interval[1] if part.interval else math.inf)
        more = {"estimate": worst.estimate, "interval": worst.interval, "n": worst.n}
        more |= {"interval_kind": f"{worst.interval_kind}, worst condition", "unit": UNIT}
    return answer(
        claim, subject, data, verdict, sentence, cells=cells, margin=claim.margin, parts=parts,
        **more,
    )  # fmt: skip


def grouped(parts: tuple[Verdict, ...]) -> dict[str, list[str]]:
    """Scopes by verdict word, in order of appearance."""
    found: dict[str, list[str]] = {}
    for part in parts:
        found.setdefault(part.verdict, []).append(part.scope)
    return found


def judge_group(
    claim: Claim, subject: str, mine: pd.DataFrame, base: pd.DataFrame, data: StudyData
) -> Verdict:
    """The verdict of one condition; `base` are baseline cells of the same model and length."""
    first = mine.iloc[0]
    scope = f"{first['model']}, {first['seq_len']} tokens"
    if base.empty:
        sentence = f"No {claim.baseline} cell at {scope} to compare with."
        return answer(claim, subject, data, "not tested", sentence, scope=scope)
    same = base
    for key in CONDITIONS:
        same = same[same[key] == first[key]]
    if same.empty:
        apart = "; ".join(nearest(first.to_dict(), base.to_dict("records"), CONDITIONS))
        sentence = f"At {scope} the cells cannot be compared: {apart}."
        return answer(claim, subject, data, "not tested", sentence, scope=scope)
    if first["eval_split"] != "test":
        sentence = (
            f"At {scope} the loss is that of the {first['eval_split']} split, on which learning "
            "rates are chosen; a verdict needs task.eval_split=test."
        )
        return answer(claim, subject, data, "not tested", sentence, scope=scope)
    mixed = mixture(mine, same)
    if mixed:
        sentence = f"At {scope} the cells cannot be compared: {mixed}."
        cells = (*mine["id"], *same["id"])
        return answer(claim, subject, data, "not tested", sentence, scope=scope, cells=cells)
    return judge_pairs(claim, subject, scope, pair(mine, same), data)


def mixture(mine: pd.DataFrame, base: pd.DataFrame) -> str:
    """What, besides seeds and the choice of optimizer, differs where it must not; "" if nothing."""
    found = []
    for cells in (mine, base):
        name = cells["optimizer"].iloc[0]
        if cells.duplicated(SEEDS).any():
            found.append(f"several {name} cells have the same seeds")
        for key, values in differing(list(cells["config"]), HARMLESS).items():
            found.append(f"the {name} cells mix {key} = {listed(values)}")
    if found:
        return "; ".join(found)
    configs = [mine["config"].iloc[0], base["config"].iloc[0]]
    for key, values in differing(configs, (*HARMLESS, "optimizer")).items():
        found.append(f"{key} is {values[0]} against {values[1]}")
    return "; ".join(found)


def pair(mine: pd.DataFrame, base: pd.DataFrame) -> Pairs:
    """Pair by model and data seed; nothing is dropped without a name."""
    pairs = Pairs()
    seeds = pd.concat([mine[SEEDS], base[SEEDS]]).drop_duplicates().sort_values(SEEDS)
    for model_seed, data_seed in seeds.itertuples(index=False):
        name = f"seed {model_seed}" if model_seed == data_seed else f"{model_seed}/{data_seed}"
        left, right = at(mine, model_seed, data_seed), at(base, model_seed, data_seed)
        problem = trouble(right)
        if left is not None and left["status"] == "diverged" and not problem:
            pairs.diverged.append(f"{name} ({left['id']})")
        elif problem or trouble(left):
            which = right if problem else left
            who = base if problem else mine
            cell = "" if which is None else f" in {which['id']}"
            what = problem or trouble(left)
            pairs.left_out.append(f"{name} ({who['optimizer'].iloc[0]} {what}{cell})")
            if not problem and left is not None:
                pairs.failed.append(name)
            continue
        else:
            assert left is not None
            assert right is not None
            pairs.differences.append(float(left["final_eval_loss"] - right["final_eval_loss"]))
        pairs.cells += [str(row["id"]) for row in (left, right) if row is not None]
    return pairs


def at(cells: pd.DataFrame, model_seed: int, data_seed: int) -> pd.Series | None:
    """The cell with these seeds, if there is one."""
    found = cells[(cells["model_seed"] == model_seed) & (cells["data_seed"] == data_seed)]
    return None if found.empty else found.iloc[0]


def trouble(run: pd.Series | None) -> str:
    """Why a cell has no final loss at the end of its planned schedule; "" if it has one."""
    if run is None:
        return "has no cell"
    if run["status"] != "done":
        return str(run["status"])
    if run["steps"] != run["planned_steps"]:
        return f"stopped at step {run['steps']:.0f} of {run['planned_steps']:.0f}"
    return "" if math.isfinite(run["final_eval_loss"]) else "has no final evaluation"


def judge_pairs(claim: Claim, subject: str, scope: str, pairs: Pairs, data: StudyData) -> Verdict:
    """The statistics of one condition and the sentence that says them."""
    if claim.margin is None:
        raise ValueError(f"Claim {claim.id} needs a margin.")
    test = None
    if len(pairs.differences) >= 2:
        test = noninferiority(pairs.differences, claim.margin, claim.alpha)
    if pairs.n < claim.min_seeds:
        verdict, why = "inconclusive", too_few(claim, pairs, test)
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
        more["interval_kind"] = f"one-sided {1 - claim.alpha:.0%} bounds"
    elif pairs.differences:
        more = {"estimate": pairs.differences[0]}
    return answer(
        claim, subject, data, verdict, " ".join([found, why, *notes]), scope=scope, n=pairs.n,
        cells=tuple(pairs.cells), margin=claim.margin, unit=UNIT, **more,
    )  # fmt: skip


def numbers(claim: Claim, pairs: Pairs, test: PairedTest | None) -> str:
    """The difference with its bounds, as far as there are any."""
    if test is not None:
        return (
            f"final held-out loss differs by {signed(test.estimate)} nats "
            f"(one-sided {1 - claim.alpha:.0%} bounds {signed(test.lower)} to "
            f"{signed(test.upper)}, margin {signed(test.margin, 3)})"
        )
    if pairs.differences:
        return (
            f"final held-out loss differs by {signed(pairs.differences[0])} nats, no spread known"
        )
    return "no finite difference in final held-out loss"


def reason(claim: Claim, test: PairedTest) -> str:
    """Why the test ended as it did; for an open one, how many pairs would settle it."""
    if test.verdict == "reproduced":
        return "The upper bound is below the margin."
    if test.verdict == "refuted":
        return "The lower bound is above the margin."
    return f"The bounds enclose the margin. {pairs_needed(claim, test)}"


def too_few(claim: Claim, pairs: Pairs, test: PairedTest | None) -> str:
    """Why there is no verdict yet, and how many pairs it would take."""
    ask = f"A verdict needs at least {claim.min_seeds} paired seeds."
    return ask if test is None else f"{ask} {pairs_needed(claim, test)}"


def pairs_needed(claim: Claim, test: PairedTest) -> str:
    """Pairs for the planned power at the observed spread, under two readings of the truth."""
    margin = test.margin
    equal = required_n(test.sd, margin, claim.alpha, claim.power)
    same = required_n(test.sd, abs(margin - test.estimate), claim.alpha, claim.power)
    texts = [
        "more than 100,000" if n is None else f"{max(n, claim.min_seeds):,}" for n in (equal, same)
    ]
    return (
        f"At the observed spread (sd {test.sd:.4f}) {claim.power:.0%} power takes {texts[0]} "
        f"paired seeds if the true difference is zero, {texts[1]} if it is the observed one."
    )
