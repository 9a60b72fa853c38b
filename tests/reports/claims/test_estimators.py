"""Each estimator on synthetic records whose right answer follows from closed forms."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from harness.cells.store import Record
from reports.claims.claim import Verdict
from reports.claims.files import claims_folder, load_claims
from reports.claims.judge import judge_one
from reports.data.load import load

Maker = Callable[..., Record]
Judge = Callable[..., Verdict]
RIVALS = ["adamw", "adamw8bit", "galore"]
MB = 1_000_000


@pytest.fixture
def judge(tmp_path: Path, write_study: Callable[..., Path]) -> Judge:
    """The verdict for "ours" of a claim, changed by keyword, over the given records."""

    def run(name: str, records: list[Record], **change: object) -> Verdict:
        claim = dataclasses.replace(load_claims(claims_folder())[name], **change)
        return judge_one(claim, next(iter(claim.subjects)), load(write_study(tmp_path, records)))

    return run


def timed(make: Maker, optimizer: str, seconds: list[float], order: int, **given: object) -> list:
    """Memory cells of one optimizer, one a turn; `order` is its place in every other turn."""
    records = []
    for turn, value in enumerate(seconds):
        record = make(optimizer, seed=turn, **given)
        record.metrics["step_median_seconds"] = value
        at = f"2026-01-01T00:{2 * turn + (order + turn) % 2:02d}"
        record.provenance |= {"started_utc": f"{at}:00+00:00", "finished_utc": f"{at}:50+00:00"}
        records.append(record)
    return records


BASE = [0.010, 0.011, 0.0095, 0.0102, 0.0108]


def turns(make: Maker, ratios: list[float]) -> list[Record]:
    slow = [ratio * base for ratio, base in zip(ratios, BASE, strict=True)]
    return timed(make, "adamw", BASE, 0) + timed(make, "gefen", slow, 1)


@pytest.mark.parametrize(
    ("threshold", "word"), [(2.5, "reproduced"), (1.5, "refuted"), (2.0, "inconclusive")]
)
def test_step_time_is_a_t_interval_on_logs(
    judge: Judge, memory_cell: Maker, threshold: float, word: str
) -> None:
    ratios = [2.0, 2.1, 1.9, 2.05, 1.97]
    records = turns(memory_cell, ratios)
    found = judge("step_parity", records, baseline="adamw", threshold=threshold)
    bounds = stats.ttest_1samp(np.log(ratios), 0).confidence_interval(0.95)
    assert found.verdict == word
    assert found.estimate == pytest.approx(stats.gmean(ratios))
    assert found.interval == pytest.approx((math.exp(bounds.low), math.exp(bounds.high)))
    assert found.n == 5
    assert set(found.cells) == {record.id for record in records}
    assert ("power to" in found.sentence) == (word == "inconclusive")


def test_four_turns_are_too_few(judge: Judge, memory_cell: Maker) -> None:
    records = [item for item in turns(memory_cell, [5.0] * 5) if item.config["seed"] < 4]
    found = judge("step_parity", records, baseline="adamw")
    assert found.verdict == "inconclusive"
    assert "at least 5 turns" in found.sentence


def test_processes_that_did_not_take_turns_are_refused(judge: Judge, memory_cell: Maker) -> None:
    records = turns(memory_cell, [2.0] * 5)
    for record in records[5:]:
        record.provenance["started_utc"] = "2026-01-02T00:00:00+00:00"
    found = judge("step_parity", records, baseline="adamw")
    assert found.verdict == "not tested"
    assert "did not take turns" in found.sentence


def test_a_crashed_turn_is_left_out_by_name(judge: Judge, memory_cell: Maker) -> None:
    records = turns(memory_cell, [2.0, 2.1, 1.9, 2.05, 1.97])
    records[9].status, records[9].metrics = "timeout", {}
    found = judge("step_parity", records, baseline="adamw")
    assert found.n == 4
    assert f"gefen: timeout ({records[9].id})" in found.sentence


def test_the_execution_of_adamw_is_told_by_its_options(judge: Judge, memory_cell: Maker) -> None:
    records = turns(memory_cell, [2.0, 2.1, 1.9, 2.05, 1.97])
    for record in records[:5]:
        record.config["optimizer"]["options"] = {"fused": True}
    assert judge("step_parity", records, baseline="adamw_fused").verdict == "refuted"
    found = judge("step_parity", records, baseline="adamw_loop")
    assert found.verdict == "not tested"
    assert "No cell timed adamw_loop" in found.sentence


def test_a_claim_about_gpus_is_not_tested_on_a_cpu(judge: Judge, memory_cell: Maker) -> None:
    found = judge("step_latency", turns(memory_cell, [2.0] * 5))
    assert found.verdict == "not tested"
    assert "timed on gpt2_124m (cpu)" in found.sentence


def peaks(make: Maker, sizes: dict[str, float], **given: object) -> list[Record]:
    """Memory cells whose largest step peak is the given number of megabytes."""
    records = []
    for optimizer, size in sizes.items():
        record = make(optimizer, **given)
        record.metrics["peak_first_step_bytes"] = size * MB
        record.metrics["peak_steady_step_bytes"] = 0.9 * size * MB
        records.append(record)
    return records


@pytest.mark.parametrize(
    ("own", "device", "word"),
    [
        (1000, "cpu", "reproduced"),
        (1400, "cpu", "inconclusive"),
        (1600, "cpu", "inconclusive"),
        (1800, "cpu", "refuted"),
        (1400, "cuda", "reproduced"),
        (1501, "cuda", "refuted"),
        (1500, "cuda", "inconclusive"),
        (400, "cpu", "not tested"),
    ],
)
def test_a_lead_counts_beyond_the_error_of_the_meter(
    judge: Judge, memory_cell: Maker, own: float, device: str, word: str
) -> None:
    sizes = {"gefen": own, "adamw": 2000, "adamw8bit": 1500, "galore": 1700}
    records = peaks(memory_cell, sizes, device=device)
    found = judge("lowest_peak", records, rivals=RIVALS)
    assert found.verdict == word
    if word != "not tested":
        assert found.cells[0] == records[0].id
    assert found.estimate == pytest.approx(1500 / own)
    assert len(found.cells) == 4


def test_lowest_of_some_is_not_lowest_of_all(judge: Judge, memory_cell: Maker) -> None:
    records = peaks(memory_cell, {"gefen": 1000, "adamw": 2000})
    found = judge("lowest_peak", records, rivals=RIVALS)
    assert found.verdict == "inconclusive"
    assert "Not measured here: adamw8bit and galore" in found.sentence


def test_a_rival_out_of_memory_takes_more(judge: Judge, memory_cell: Maker) -> None:
    records = peaks(memory_cell, {"gefen": 1000, "adamw": 2000, "adamw8bit": 1900})
    records.append(memory_cell("galore", status="oom"))
    found = judge("lowest_peak", records, rivals=RIVALS)
    assert found.verdict == "reproduced"
    assert f"Out of memory, which is more: galore ({records[-1].id})" in found.sentence
    records = [*peaks(memory_cell, {"adamw": 2000}), memory_cell("gefen", status="oom")]
    assert judge("lowest_peak", records, rivals=["adamw"]).verdict == "refuted"


def test_stated_state_is_held_to_its_word(judge: Judge, memory_cell: Maker) -> None:
    honest = memory_cell("gefen")
    assert judge("stated_state", [honest]).verdict == "reproduced"
    double = memory_cell("gefen", seed=1)
    double.metrics["optimizer_state_predicted_bytes"] //= 2
    found = judge("stated_state", [honest, double])
    assert found.verdict == "refuted"
    assert found.estimate == pytest.approx(100, rel=1e-6)
    assert found.n == 1  # one model in one precision, whatever the seeds
    honest.metrics["optimizer_state_predicted_bytes"] = None
    assert judge("stated_state", [honest]).verdict == "not tested"


def test_bytes_per_parameter_of_named_models(judge: Judge, memory_cell: Maker) -> None:
    cells = [memory_cell("gefen", model="llama3_1b"), memory_cell("gefen", state_bytes=9 * 10**9)]
    assert judge("modern_decoders", cells).verdict == "inconclusive"
    named = {"models": ["llama3_1b", "llama3_8b"], "precisions": ["fp32"]}
    found = judge("modern_decoders", cells, **named)
    assert found.verdict == "inconclusive"
    assert "Models of the claim without a record: llama3_8b." in found.sentence
    found = judge("modern_decoders", cells, models=["llama3_1b"], precisions=["fp32", "bf16_pure"])
    assert found.verdict == "inconclusive"
    assert "Not measured: bf16_pure." in found.sentence
    found = judge("modern_decoders", cells, models=["llama3_1b"], precisions=["fp32"])
    assert found.verdict == "reproduced"  # gpt2_124m is not among the models of the claim
    assert found.estimate == pytest.approx(1.0005, rel=1e-6)
    assert found.cells == (cells[0].id,)
    wide = memory_cell("gefen", model="llama3_8b", state_bytes=3.15 * 124_439_808)
    assert judge("modern_decoders", [*cells, wide]).verdict == "refuted"


def test_a_model_on_which_the_subject_failed_keeps_the_state_claim_open(
    judge: Judge, memory_cell: Maker
) -> None:
    records = [memory_cell("adamw"), memory_cell("gefen")]
    assert judge("state_8x", records, precisions=["fp32"]).verdict == "reproduced"
    records.append(memory_cell("gefen", model="llama3_1b", status="oom"))
    found = judge("state_8x", records, precisions=["fp32"])
    assert found.verdict == "inconclusive"
    assert f"llama3_1b with gefen: oom ({records[-1].id})" in found.sentence


@pytest.mark.parametrize("built", [0.0, 0.5])
@pytest.mark.parametrize("status", ["oom", "crashed", "timeout"])
def test_state_that_a_failed_cell_had_built_so_far_is_no_count(
    judge: Judge, memory_cell: Maker, built: float, status: str
) -> None:
    """5.7 bytes a parameter in truth; half of it built when memory ran out looks like 2.85."""
    records = [memory_cell("adamw"), memory_cell("gefen")]
    lost = memory_cell("gefen", model="llama3_1b", state_bytes=int(5.7 * built * 124_439_808))
    lost.status = status
    other = memory_cell("adamw", model="llama3_1b")
    found = judge("state_8x", [*records, lost, other], precisions=["fp32"], threshold=2.0)
    assert found.verdict == "inconclusive"
    assert found.estimate == pytest.approx(8 / 1.0005, rel=1e-6)
    assert lost.id not in found.cells
    # A baseline that did not finish is no partner, and nobody's stated bytes were counted.
    lost = memory_cell("adamw", state_bytes=int(4 * built * 124_439_808))
    lost.status = status
    assert judge("state_8x", [lost, memory_cell("gefen")]).verdict == "not tested"
    assert judge("stated_state", [memory_cell("gefen"), lost], subjects={"AdamW": "adamw"}) \
        .verdict == "not tested"  # fmt: skip


def test_a_probe_under_a_cap_is_no_count_of_state(judge: Judge, memory_cell: Maker) -> None:
    records = [memory_cell("adamw"), memory_cell("gefen")]
    for record in records:
        record.config["task"]["memory_cap_gib"] = 2.0
    assert judge("state_8x", records, precisions=["fp32"]).verdict == "not tested"


def test_tables_outside_the_state_count(judge: Judge, memory_cell: Maker) -> None:
    records = [memory_cell("adamw", state_bytes=0.0), memory_cell("gefen")]
    records[0].metrics |= {"optimizer_state_bytes": 8 * 10**8}
    records[1].metrics |= {"optimizer_state_bytes": 10**8, "optimizer_tables_bytes": 10**8}
    found = judge("state_8x", records, precisions=["fp32"])
    assert found.verdict == "refuted"
    assert found.estimate == pytest.approx(4.0)
    assert "tables outside it" in found.sentence


@pytest.mark.parametrize(
    ("model", "tensors", "parameters"),
    [("gpt2_3m", 52, 2_762_880), ("gpt2_124m", 148, 124_439_808)],
)
def test_stamlite_has_half_of_adamws_state(
    judge: Judge, memory_cell: Maker, model: str, tensors: int, parameters: int
) -> None:
    shape = {"model": model, "parameters": parameters}
    for factor, word in ((1, "reproduced"), (2, "refuted")):
        records = [memory_cell("adamw", **shape, state_bytes=8 * parameters + 4 * tensors)]
        size = 4 * factor * parameters + 20 * tensors
        records.append(memory_cell("stam_lite", **shape, state_bytes=size))
        found = judge("stamlite_state", records, precisions=["fp32"])
        assert found.verdict == word
        assert found.estimate == pytest.approx((8 * parameters + 4 * tensors) / size)


NOISE = [0.001, -0.002, 0.0005, 0.002, -0.001]


def losses(make: Maker, shift: float, lr: float = 1e-3, **given: object) -> list[Record]:
    cells = [make("adamw", seed, 3.0 + 0.01 * seed) for seed in range(5)]
    for seed, extra in enumerate(NOISE):
        cells.append(make("gefen", seed, 3.0 + 0.01 * seed + shift + extra, lr=lr, **given))
    return cells


def test_only_cells_at_the_baselines_rate_say_that_it_transfers(
    judge: Judge, loss_cell: Maker
) -> None:
    mixed = [*losses(loss_cell, 0.0), *losses(loss_cell, 0.5, lr=2e-3)[5:]]
    found = judge("no_new_hyperparameters", mixed)
    assert found.verdict == "reproduced"
    assert found.estimate == pytest.approx(sum(NOISE) / 5)
    found = judge("no_new_hyperparameters", losses(loss_cell, 0.0, lr=2e-3))
    assert found.verdict == "not tested"
    assert "learning rate" in found.sentence
    assert judge("no_new_hyperparameters", losses(loss_cell, 0.05)).verdict == "refuted"


@pytest.mark.parametrize(
    ("hypothesis", "shift", "word"),
    [
        ("not_worse", -0.05, "reproduced"),
        ("better", -0.05, "reproduced"),
        ("better", 0.0, "inconclusive"),
        ("better", 0.005, "refuted"),
        ("same", 0.0, "reproduced"),
        ("same", -0.05, "refuted"),
        ("same", 0.05, "refuted"),
        ("same", 0.01, "inconclusive"),
        ("same", -0.009, "inconclusive"),
    ],
)
def test_the_hypothesis_chooses_the_test(
    judge: Judge, loss_cell: Maker, hypothesis: str, shift: float, word: str
) -> None:
    found = judge("adamw_loss", losses(loss_cell, shift), hypothesis=hypothesis)
    assert found.verdict == word, found.sentence
    assert found.margin == (0.0 if hypothesis == "better" else 0.01)
    half = stats.t.ppf(0.95, 4) * np.std(NOISE, ddof=1) / math.sqrt(5)
    mean = shift + sum(NOISE) / 5
    assert found.interval == pytest.approx((mean - half, mean + half))
    assert ("power to" in found.sentence) == (word == "inconclusive")


@pytest.mark.parametrize("hypothesis", ["not_worse", "better", "same"])
@pytest.mark.parametrize(
    ("mine", "base", "word"),
    [
        (5, 0, "refuted"),
        (4, 0, "inconclusive"),
        (5, 1, "inconclusive"),
        (7, 1, "refuted"),
    ],
)
def test_divergence_refutes_where_the_sign_test_does(
    judge: Judge, loss_cell: Maker, hypothesis: str, mine: int, base: int, word: str
) -> None:
    """`mine` of the candidate's runs alone diverge and `base` of the baseline's; none finish."""
    records = []
    for seed in range(mine + base):
        for name, bad in (("gefen", seed < mine), ("adamw", seed >= mine)):
            records.append(loss_cell(name, seed, status="diverged" if bad else "done"))
    found = judge("adamw_loss", records, hypothesis=hypothesis)
    wanted = stats.binomtest(mine, mine + base, alternative="greater").pvalue
    assert (wanted < 0.05) == (word == "refuted")
    assert found.verdict == word
    if mine + base >= 5:
        assert f"sign test p = {wanted:.3f}" in found.sentence
        assert f"diverged in {mine} pairs, only the baseline in {base}" in found.sentence
        assert found.p_refuted is None or found.p_refuted == pytest.approx(wanted)
    assert found.estimate == math.inf
    assert found.interval is None


@pytest.mark.parametrize("status", ["oom", "timeout", "crashed", "interrupted"])
def test_every_failure_is_named_by_its_status(judge: Judge, loss_cell: Maker, status: str) -> None:
    records = losses(loss_cell, 0.0)
    records[-1] = loss_cell("gefen", 4, status=status)
    found = judge("adamw_loss", records)
    assert found.verdict == "inconclusive"
    assert f"seed 4 (gefen {status} in {records[-1].id})" in found.sentence


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("code_hash", "c" * 64, "code hash cccccccc against aaaaaaaa"),
        ("data_hash", "d" * 64, "data hash dddddddd against bbbbbbbb"),
        ("device", "cuda", "device cuda against cpu"),
        ("precision", "bf16_pure", "precision bf16_pure against fp32"),
    ],
)
def test_what_differs_is_compared_only_on_request_and_with_a_warning(
    judge: Judge, loss_cell: Maker, memory_cell: Maker, key: str, value: str, said: str
) -> None:
    records = losses(loss_cell, 0.0, **{key: value})
    refused = judge("adamw_loss", records)
    assert refused.verdict == "not tested"
    assert said in refused.sentence
    found = judge("adamw_loss", records, allow_different=[key])
    assert found.verdict == "reproduced"
    assert f"WARNING: compared although they differ in {said}" in found.sentence
    pair = [memory_cell("adamw"), memory_cell("gefen", **{key: value})]
    options = {"precisions": ["fp32", "bf16_pure"]}
    assert judge("state_8x", pair, **options).verdict == "not tested"
    options["precisions"] = [pair[1].config["precision"]]
    found = judge("state_8x", pair, allow_different=[key], **options)
    assert found.verdict == "reproduced"
    assert f"WARNING: compared although they differ in {said}" in found.sentence


def test_models_from_different_code_are_not_one_verdict(judge: Judge, memory_cell: Maker) -> None:
    other = {"model": "llama_130m", "code_hash": "c" * 64}
    records = [memory_cell(name, **given) for given in ({}, other) for name in ("adamw", "gefen")]
    found = judge("state_8x", records)
    assert found.verdict == "not tested"
    assert "code hash aaaaaaaa and cccccccc" in found.sentence


def probes(make: Maker, optimizer: str, limit: int, tried: list[int]) -> list[Record]:
    """A search under a cap: values up to `limit` train, larger ones run out of memory."""
    records = []
    for value in tried:
        status = "done" if value <= limit else "oom"
        record = make(optimizer, micro_batch=value, salt=str(value), status=status)
        record.config["task"]["memory_cap_gib"] = 1.25
        if status == "done":
            record.metrics["tokens_per_second"] = 100.0 * value
        records.append(record)
    return records


def test_capacity_is_the_largest_done_below_the_smallest_oom(
    judge: Judge, memory_cell: Maker
) -> None:
    own = probes(memory_cell, "gefen", 12, [1, 2, 4, 8, 16, 12, 14, 13])
    base = probes(memory_cell, "adamw", 5, [1, 2, 4, 8, 6, 5])
    found = judge("capacity_one_device", own + base)
    assert found.verdict == "reproduced"
    assert found.estimate == pytest.approx(12 / 5)
    assert found.interval == pytest.approx((12 / 5, 12 / 5))
    assert "one probe a side" in found.sentence
    assert "untested (a few steps of different batches): 1,200 beside 500" in found.sentence
    values = {item.id: item.config["micro_batch"] for item in own + base}
    assert sorted(values[cell] for cell in found.cells) == [5, 6, 12, 13]
    back = judge("capacity_one_device", own + base, subjects={"AdamW": "adamw"}, baseline="gefen")
    assert back.verdict == "refuted"


def test_an_unfinished_or_odd_search_decides_nothing(judge: Judge, memory_cell: Maker) -> None:
    own = probes(memory_cell, "gefen", 6, [1, 2, 4, 8])
    base = probes(memory_cell, "adamw", 5, [1, 2, 4, 8])
    found = judge("capacity_one_device", own + base)
    assert found.verdict == "inconclusive"
    assert found.interval == pytest.approx((4 / 7, 7 / 4))
    narrow = probes(memory_cell, "gefen", 6, [1, 6, 7]) + probes(memory_cell, "adamw", 5, [1, 5, 6])
    odd = narrow[0]
    odd.status = "oom"
    found = judge("capacity_one_device", narrow)
    assert found.verdict == "inconclusive"
    assert "Not monotone" in found.sentence
