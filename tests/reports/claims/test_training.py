"""Claims on spikes, tokens to a target and wrong rates, on records whose answer is known."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.cells.store import Record
from harness.config import OptimizerConfig, RunConfig, to_dict
from harness.study.planner import resolve
from reports.claims.claim import Verdict
from reports.claims.files import claims_folder, read_claim
from reports.claims.judge import judge_one
from reports.claims.registry import all_estimators
from reports.data.identity import variants
from reports.data.load import StudyData, row_of

Maker = Callable[..., Record]
Judge = Callable[..., Verdict]
RIVALS = ["adamw", "lion"]


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    """The verdict on gefen in the subject's place, beside adamw and lion; no file is written."""

    def run(name: str, records: list[Record], study: dict[str, Any] | None = None,
            **change: Any) -> Verdict:  # fmt: skip
        claim = read_claim(claims_folder() / f"{name}.yaml", all_estimators())
        asked = {"subjects": {"ours": "gefen"}, "baselines": RIVALS} | change
        runs = pd.DataFrame([row_of(record.to_dict()) for record in records])
        runs["variant"] = variants(runs)
        about = {"name": "synthetic"} | (study or {})
        data = StudyData(tmp_path, about, runs, pd.DataFrame(), about.pop("pending", []))
        return judge_one(dataclasses.replace(claim, **asked), "ours", data)

    return run


def spiky(make: Maker, counts: Mapping[str, Sequence[float | None]], **given: Any) -> list[Record]:
    """Cells with these numbers of spikes by seed; None for a run that diverged."""
    records = []
    for optimizer, numbers in counts.items():
        for seed, number in enumerate(numbers):
            status = "diverged" if number is None else "done"
            record = make(optimizer, seed, 3.0, status=status, **given)
            record.metrics["loss_spikes_total"] = number or 0
            records.append(record)
    return records


MANY, FEW = [9, 7, 12, 8, 10, 6, 9], [2, 1, 4, 0, 3, 1, 2]


@pytest.mark.parametrize(
    ("mine", "lion", "word"),
    [
        (FEW, MANY, "reproduced"),
        (MANY, FEW, "refuted"),
        (FEW, FEW[::-1], "inconclusive"),  # against one of the two nothing is shown
        ([0] * 7, [0] * 7, "inconclusive"),
    ],
)
def test_fewer_spikes_than_both_are_asked_for(
    judge: Judge, loss_cell: Maker, mine: list[int], lion: list[int], word: str
) -> None:
    found = judge("stam_spikes", spiky(loss_cell, {"gefen": mine, "adamw": MANY, "lion": lion}))
    assert found.verdict == word
    assert [part.scope[-12:] for part in found.parts] == ["gainst adamw", "against lion"]
    first = found.parts[0]
    differences = np.subtract(mine, MANY)
    assert first.estimate == pytest.approx(differences.mean())
    ways = [
        (signs * abs(differences)).sum() >= differences.sum()
        for signs in np.array(np.meshgrid(*[[-1, 1]] * 7)).reshape(7, -1).T
    ]
    assert first.p_refuted == pytest.approx(np.mean(ways))
    assert len(found.cells) == 21


def test_neither_arm_with_spikes_says_that_nothing_can_be_told(
    judge: Judge, loss_cell: Maker
) -> None:
    found = judge("stam_spikes", spiky(loss_cell, {"gefen": [0] * 7, "adamw": [0] * 7}))
    assert "Where neither had any, nothing can be told" in found.parts[0].sentence
    assert found.parts[1].verdict == "not tested"  # no cell of lion
    assert found.verdict == "inconclusive"


def test_a_run_that_diverged_is_worse_than_any_count(judge: Judge, loss_cell: Maker) -> None:
    counts: dict[str, Sequence[float | None]] = {"gefen": [1] * 7, "adamw": [*[None] * 6, 5]}
    found = judge("stam_spikes", spiky(loss_cell, counts), baselines=["adamw"])
    assert found.verdict == "reproduced"
    assert "0 of the candidate's runs and 6 of the baseline's diverged" in found.sentence
    counts = {"gefen": [*[None] * 6, 5], "adamw": [1] * 7}
    assert judge("stam_spikes", spiky(loss_cell, counts), baselines=["adamw"]).verdict == "refuted"


def test_too_few_pairs_and_planned_cells_keep_it_open(judge: Judge, loss_cell: Maker) -> None:
    counts = {"gefen": FEW[:4], "adamw": MANY[:4]}
    found = judge("stam_spikes", spiky(loss_cell, counts), baselines=["adamw"])
    assert found.verdict == "inconclusive"
    assert "at least 5 paired seeds" in found.sentence
    records = spiky(loss_cell, {"gefen": FEW, "adamw": MANY})
    label = records[-1].label.rpartition("/")[0] + "/8"
    pending = [{"id": "0" * 16, "part": records[-1].part, "label": label}]
    found = judge("stam_spikes", records, {"pending": pending}, baselines=["adamw"])
    assert found.verdict == "inconclusive"
    assert found.sentence.startswith("Interim: 7 of 8 planned pairs")


def test_what_must_be_alike_is_refused_by_name(judge: Judge, loss_cell: Maker) -> None:
    records = spiky(loss_cell, {"gefen": FEW}, code_hash="d" * 64)
    records += spiky(loss_cell, {"adamw": MANY})
    found = judge("stam_spikes", records, baselines=["adamw"])
    assert found.verdict == "not tested"
    assert "code hash" in found.sentence
    records = spiky(loss_cell, {"gefen": FEW, "adamw": MANY})
    for record in records[:7]:
        record.config["task"]["spike_mads"] = 4.0
    found = judge("stam_spikes", records, baselines=["adamw"])
    assert "task.spike_mads is 4.0 against None" in found.sentence


def test_parts_and_rates_are_conditions_of_their_own(judge: Judge, loss_cell: Maker) -> None:
    records = spiky(loss_cell, {"gefen": FEW, "adamw": MANY}, part="high_rate")
    noisy = spiky(loss_cell, {"gefen": MANY, "adamw": FEW}, part="noise", salt="noise")
    found = judge("stam_spikes", records + noisy, baselines=["adamw"])
    assert [part.verdict for part in found.parts] == ["reproduced", "refuted"]
    assert found.verdict == "refuted"
    assert found.parts[1].scope.startswith("noise, gpt2_4m")


def aimed(make: Maker, tokens: dict[str, Sequence[float | None]], **given: Any) -> list[Record]:
    """Cells that reach their target after so many tokens; None for never."""
    records = []
    for optimizer, numbers in tokens.items():
        for seed, number in enumerate(numbers):
            record = make(optimizer, seed, 3.0, **given)
            record.config["task"]["target_loss"] = 4.0
            record.metrics["tokens_to_target"] = number
            records.append(record)
    return records


BASE = [100e3, 120e3, 90e3, 110e3, 105e3]


@pytest.mark.parametrize(
    ("ratios", "word"),
    [
        ([0.8, 0.82, 0.79, 0.81, 0.8], "reproduced"),
        ([1.2, 1.22, 1.19, 1.21, 1.2], "refuted"),
        ([0.9, 1.1, 1.0, 1.05, 0.97], "inconclusive"),
    ],
)
def test_tokens_to_target_are_judged_as_ratios(
    judge: Judge, loss_cell: Maker, ratios: list[float], word: str
) -> None:
    mine = [ratio * base for ratio, base in zip(ratios, BASE, strict=True)]
    records = aimed(loss_cell, {"gefen": mine, "adamw": BASE, "lion": BASE})
    found = judge("stam_faster", records)
    assert found.verdict == word
    t = stats.ttest_1samp(np.log(ratios), 0)
    bounds = t.confidence_interval(0.9)
    assert found.estimate == pytest.approx(stats.gmean(ratios))
    assert found.interval == pytest.approx((math.exp(bounds.low), math.exp(bounds.high)))
    assert found.margin == 1.0


def test_a_target_that_is_not_reached_leaves_the_order(judge: Judge, loss_cell: Maker) -> None:
    tokens: dict[str, Sequence[float | None]] = {"gefen": [80e3] * 5, "adamw": [*BASE[:4], None]}
    found = judge("stam_faster", aimed(loss_cell, tokens), baselines=["adamw"])
    assert found.verdict == "reproduced"
    assert found.p_refuted == 1.0
    assert "one-sided p = 0.031 for lower" in found.sentence
    both: dict[str, Sequence[float | None]] = {"gefen": [None] * 5, "adamw": [None] * 5}
    assert judge("stam_faster", aimed(loss_cell, both), baselines=["adamw"]).verdict == (
        "inconclusive"
    )
    validation = aimed(loss_cell, tokens, eval_split="validation")
    found = judge("stam_faster", validation, baselines=["adamw"])
    assert found.verdict == "not tested"
    plain = [loss_cell(name, 0) for name in ("gefen", "adamw")]
    assert "task.target_loss" in judge("stam_faster", plain).sentence


def swept(make: Maker, rises: Mapping[str, Mapping[float, Sequence[float | None]]]) -> list[Record]:
    """Cells at factors of the best rate whose losses are so much above those at 1.

    Each has the optimizer's settings as `cells.resolve` leaves them in a record.
    """
    records = []
    for optimizer, by_factor in rises.items():
        start = 1e-3 / len(optimizer)
        for factor, values in {1.0: [0.0] * 5, **by_factor}.items():
            asked = OptimizerConfig(optimizer, lr=start, lr_factor=factor)
            recorded = resolve(RunConfig(asked, device="cpu")).optimizer
            for seed, rise in enumerate(values):
                best = 5.0 + 0.1 * seed + 0.01 * len(optimizer)
                status = "diverged" if rise is None else "done"
                loss = best + (rise or 0.0)
                record = make(optimizer, seed, loss, status=status, salt=str(factor))
                record.config["optimizer"] = to_dict(recorded)
                records.append(record)
    return records


SMALL, LARGE = [0.10, 0.12, 0.09, 0.11, 0.10], [0.50, 0.45, 0.52, 0.48, 0.51]


def test_the_cost_of_a_wrong_rate_is_compared_at_each_factor(
    judge: Judge, loss_cell: Maker
) -> None:
    rises = {
        "gefen": {2.0: SMALL, 4.0: SMALL},
        "adamw": {2.0: LARGE, 4.0: LARGE},
        "lion": {2.0: LARGE, 4.0: LARGE},
    }
    found = judge("stam_lr_robust", swept(loss_cell, rises))
    assert found.verdict == "reproduced"
    assert len(found.parts) == 4
    differences = np.subtract(SMALL, LARGE)
    bounds = stats.ttest_1samp(differences, 0).confidence_interval(0.9)
    assert found.parts[0].estimate == pytest.approx(differences.mean())
    assert found.parts[0].interval == pytest.approx((bounds.low, bounds.high))
    assert "2 times the rate" in found.parts[0].scope
    assert len(found.cells) == 45
    swapped = {"gefen": rises["adamw"], "adamw": rises["gefen"], "lion": rises["lion"]}
    assert judge("stam_lr_robust", swept(loss_cell, swapped)).verdict == "refuted"


def test_divergence_at_the_wrong_rate_is_the_largest_cost(judge: Judge, loss_cell: Maker) -> None:
    lost: dict[str, dict[float, Sequence[float | None]]] = {
        "gefen": {2.0: SMALL},
        "adamw": {2.0: [None] * 5},
    }
    found = judge("stam_lr_robust", swept(loss_cell, lost), baselines=["adamw"], rate_factors=[2])
    assert found.verdict == "reproduced"
    assert "sign test" in found.sentence


def test_a_rate_that_is_not_the_best_keeps_it_open(judge: Judge, loss_cell: Maker) -> None:
    better = [-0.30, -0.28, -0.31, -0.29, -0.30]
    rises = {"gefen": {2.0: better}, "adamw": {2.0: LARGE}}
    found = judge("stam_lr_robust", swept(loss_cell, rises), baselines=["adamw"], rate_factors=[2])
    assert found.verdict == "inconclusive"
    assert "gefen is better at this factor than at the rate that was taken as" in found.sentence


def test_a_reference_that_has_not_run_is_not_replaced_by_the_next_rate(
    judge: Judge, loss_cell: Maker
) -> None:
    rises = {name: {2.0: SMALL, 4.0: LARGE} for name in ("gefen", "adamw")}
    records = swept(loss_cell, rises)
    records = [*records[5:15], *records[20:]]  # each optimizer's five cells at its best rate go
    assert judge("stam_lr_robust", records, baselines=["adamw"]).verdict == "not tested"


def test_a_final_loss_is_judged_against_each_baseline(judge: Judge, loss_cell: Maker) -> None:
    noise = [0.01, -0.01, 0.02, 0.0, -0.02]
    records = []
    for name, shift in (("gefen", 0.0), ("adamw", 0.3), ("lion", 0.1)):
        records += [loss_cell(name, s, 3.0 + shift * (1 + n)) for s, n in enumerate(noise)]
    found = judge("stam_accuracy", records)
    assert found.verdict == "reproduced"
    assert found.estimate == pytest.approx(-0.1)  # the worst condition stands for all
    assert [part.scope for part in found.parts] == [
        "gpt2_4m, 256 tokens, against adamw", "gpt2_4m, 256 tokens, against lion"
    ]  # fmt: skip
    alone = [item for item in records if item.config["optimizer"]["name"] != "lion"]
    found = judge("stam_accuracy", alone)
    assert [part.verdict for part in found.parts] == ["reproduced", "not tested"]
    assert found.verdict == "inconclusive"


def test_a_demonstration_gives_no_verdict(judge: Judge, loss_cell: Maker) -> None:
    records = spiky(loss_cell, {"gefen": FEW, "adamw": MANY})
    assert judge("stam_spikes", records, {"demonstration": True}).verdict == "not tested"
