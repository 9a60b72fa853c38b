"""Verdicts on synthetic records whose right answer is known."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from harness.cells.store import Record
from reports.claims.claim import Claim, Verdict
from reports.claims.files import claims_folder, load_claims
from reports.claims.judge import evaluate
from reports.data.load import ReportError, load

Maker = Callable[..., Record]
PAIRS = [(seed, 3.0 + 0.01 * seed) for seed in range(5)]
NOISE = [0.001, -0.002, 0.0005, 0.002, -0.001]


@pytest.fixture
def judge(tmp_path: Path, write_study: Callable[..., Path]) -> Callable[..., dict[str, Verdict]]:
    """Verdicts for "ours" by claim id, over the given records."""

    def run(records: list[Record], **study: object) -> dict[str, Verdict]:
        claims = load_claims(claims_folder())
        known = ["state_8x", "gib_per_billion", "adamw_loss"]
        folder = write_study(tmp_path / "study", records, **({"claims": known} | study))
        verdicts = evaluate(load(folder), claims)
        return {item.claim: item for item in verdicts if item.subject == "ours"}

    return run


def pairs(make: Maker, shift: float, noise: list[float] = NOISE, **given: object) -> list[Record]:
    cells = [make("adamw", seed, loss, **given) for seed, loss in PAIRS]
    for (seed, loss), extra in zip(PAIRS, noise, strict=True):
        cells.append(make("gefen", seed, loss + shift + extra, **given))
    return cells


def test_state_is_reproduced_from_counts(judge: Callable, memory_cell: Maker) -> None:
    pair = [memory_cell("adamw"), memory_cell("gefen")]
    ratio = judge(pair)["state_8x"]
    assert ratio.verdict == "inconclusive"  # the claim names bf16_mixed too
    assert "Not measured: bf16_mixed." in ratio.sentence
    mixed = [memory_cell(name, precision="bf16_mixed") for name in ("adamw", "gefen")]
    found = judge([*pair, *mixed])
    ratio = found["state_8x"]
    assert ratio.verdict == "reproduced"
    assert ratio.estimate == pytest.approx(8.0 / 1.0005, rel=1e-6)
    assert len(ratio.cells) == 4
    saved = found["gib_per_billion"]
    assert saved.verdict == "reproduced"
    assert saved.estimate == pytest.approx((8 - 1.0005) * 1e9 / 2**30, rel=1e-6)


def test_one_bad_model_refutes_the_state_claim(judge: Callable, memory_cell: Maker) -> None:
    large = {"model": "llama_1b", "parameters": 1_000_000_000}
    records = [memory_cell("adamw"), memory_cell("gefen"), memory_cell("adamw", **large)]
    records.append(memory_cell("gefen", state_bytes=3_150_000_000, **large))
    found = judge(records)["state_8x"]
    assert found.verdict == "refuted"
    assert found.n == 2
    assert found.interval == pytest.approx((8 / 3.15, 8 / 1.0005), rel=1e-6)


def test_a_small_model_cannot_test_the_state_claim(judge: Callable, memory_cell: Maker) -> None:
    small = {"model": "gpt2_4m", "parameters": 4_000_000}
    found = judge([memory_cell("adamw", **small), memory_cell("gefen", **small)])["state_8x"]
    assert found.verdict == "not tested"
    assert "100 M" in found.sentence


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("code_hash", "c" * 64, "code hash"),
        ("data_hash", "d" * 64, "data hash"),
        ("device", "cuda", "device"),
    ],
)
def test_unlike_records_are_not_compared(
    judge: Callable, memory_cell: Maker, loss_cell: Maker, key: str, value: str, word: str
) -> None:
    records = [memory_cell("adamw"), memory_cell("gefen", **{key: value})]
    for seed, loss in PAIRS:
        records.append(loss_cell("adamw", seed, loss))
        records.append(loss_cell("gefen", seed, loss, **{key: value}))
    for verdict in judge(records).values():
        assert verdict.verdict == "not tested"
        assert word in verdict.sentence


def test_bf16_against_fp32_is_not_compared(judge: Callable, memory_cell: Maker) -> None:
    found = judge([memory_cell("adamw"), memory_cell("gefen", precision="bf16_mixed")])["state_8x"]
    assert found.verdict == "not tested"
    assert "precision bf16_mixed against fp32" in found.sentence


@pytest.mark.parametrize(("shift", "word"), [(0.0, "reproduced"), (0.05, "refuted")])
def test_loss_is_decided(judge: Callable, loss_cell: Maker, shift: float, word: str) -> None:
    found = judge(pairs(loss_cell, shift))["adamw_loss"]
    assert found.verdict == word
    assert found.n == 5
    assert len(found.cells) == 10
    assert found.estimate == pytest.approx(shift + sum(NOISE) / 5)


def test_wide_loss_is_inconclusive_and_says_how_many_seeds(
    judge: Callable, loss_cell: Maker
) -> None:
    noise = [0.05, -0.05, 0.02, -0.03, 0.01]
    found = judge(pairs(loss_cell, 0.0, noise))["adamw_loss"]
    assert found.verdict == "inconclusive"
    limit = float(np.std(noise, ddof=1)) * math.sqrt(4 / stats.chi2.ppf(0.2, 4))
    n = planned_n(0.01 / limit, 0.8)
    assert f"power to reproduce takes {n} paired seeds if the true difference is zero" in (
        found.sentence
    )
    assert "on fresh seeds judged alone" in found.sentence
    assert "to refute" not in found.sentence
    # Beyond the margin the other question is open: how many pairs would refute it.
    found = judge(pairs(loss_cell, 0.03, noise))["adamw_loss"]
    assert found.verdict == "inconclusive"
    n = planned_n((0.03 + sum(noise) / 5 - 0.01) / limit, 0.8)
    assert f"80% power to refute takes {n} paired seeds if the true difference is the observed" in (
        found.sentence
    )
    # Two conditions: each must reproduce, so each is planned at the root of the power.
    both = pairs(loss_cell, 0.0, noise) + pairs(loss_cell, 0.0, noise, seq_len=1024)
    n = planned_n(0.01 / limit, math.sqrt(0.8))
    for part in judge(both)["adamw_loss"].parts:
        assert f"89% power to reproduce takes {n} paired seeds" in part.sentence


def planned_n(effect: float, power: float) -> int:
    """The first n whose noncentral t distribution has `power` beyond the critical value."""
    beyond = (stats.nct.sf(stats.t.ppf(0.95, n - 1), n - 1, effect * math.sqrt(n))
              for n in itertools.count(2))  # fmt: skip
    return next(n for n, found in enumerate(beyond, 2) if found >= power)


def test_one_seed_is_inconclusive(judge: Callable, loss_cell: Maker) -> None:
    found = judge([loss_cell("adamw", 0, 3.0), loss_cell("gefen", 0, 3.0)])["adamw_loss"]
    assert found.verdict == "inconclusive"
    assert "at least 5 paired seeds" in found.sentence
    assert found.n == 1


def test_every_sequence_length_counts(judge: Callable, loss_cell: Maker) -> None:
    records = pairs(loss_cell, 0.0) + pairs(loss_cell, 0.05, seq_len=1024)
    found = judge(records)["adamw_loss"]
    assert found.verdict == "refuted"
    assert [part.verdict for part in found.parts] == ["reproduced", "refuted"]
    assert "1024 tokens" in found.parts[1].scope
    assert len(found.cells) == 20


def test_half_decided_is_inconclusive_overall(judge: Callable, loss_cell: Maker) -> None:
    records = [*pairs(loss_cell, 0.0), loss_cell("adamw", 0, seq_len=1024)]
    records.append(loss_cell("gefen", 0, seq_len=1024))
    assert judge(records)["adamw_loss"].verdict == "inconclusive"


def test_one_divergence_decides_nothing_and_is_named(judge: Callable, loss_cell: Maker) -> None:
    records = pairs(loss_cell, 0.0)
    records[-1] = loss_cell("gefen", 4, status="diverged")
    found = judge(records)["adamw_loss"]
    assert found.verdict == "inconclusive"
    assert "Only the candidate diverged in 1 pair, only the baseline in 0" in found.sentence
    assert "over the 4 pairs that finished" in found.sentence
    assert f"Diverged: seed 4 ({records[-1].id})" in found.sentence
    assert records[-1].id in found.cells
    assert found.n == 5


def test_a_divergence_of_the_baseline_is_named_and_does_not_count_against_the_candidate(
    judge: Callable, loss_cell: Maker
) -> None:
    for shift, word in ((0.0, "reproduced"), (0.05, "inconclusive")):
        records = [*pairs(loss_cell, shift), loss_cell("gefen", 9, 3.0)]
        records.append(loss_cell("adamw", 9, status="diverged"))
        found = judge(records)["adamw_loss"]
        assert found.verdict == word
        assert f"Baseline diverged: seed 9 ({records[-1].id})" in found.sentence
        assert found.n == 6
        assert found.estimate == pytest.approx(shift + sum(NOISE) / 5)


def test_a_clearly_worse_candidate_is_refuted_though_it_diverged_once(
    judge: Callable, loss_cell: Maker
) -> None:
    records = [*pairs(loss_cell, 0.05), loss_cell("adamw", 9, 3.0)]
    records.append(loss_cell("gefen", 9, status="diverged"))
    found = judge(records)["adamw_loss"]
    assert found.verdict == "refuted"
    assert "over the 5 pairs that finished" in found.interval_kind


def test_the_numbers_of_a_refuted_claim_refute_it(judge: Callable, loss_cell: Maker) -> None:
    """A wide condition has the larger upper bound, and a single pair an infinite one."""
    wide = pairs(loss_cell, 0.03, [0.2, -0.2, 0.1, -0.15, 0.05], seq_len=1024)
    single = [loss_cell("adamw", 0, 3.0, seq_len=512), loss_cell("gefen", 0, 3.0, seq_len=512)]
    found = judge([*pairs(loss_cell, 0.05), *wide, *single])["adamw_loss"]
    assert found.verdict == "refuted"
    assert found.estimate == pytest.approx(0.05 + sum(NOISE) / 5)
    assert found.interval[0] > found.margin
    found = judge([*pairs(loss_cell, 0.0), *wide, *single])["adamw_loss"]
    assert found.verdict == "inconclusive"
    assert found.estimate == pytest.approx(0.03)  # not the single pair, which has no interval


def test_a_condition_refuted_alone_does_not_refute_the_whole_by_itself(
    judge: Callable, loss_cell: Maker
) -> None:
    noise = [0.004, -0.004, 0.002, -0.003, 0.001]
    shift = 0.01 + 2.5 * float(np.std(noise, ddof=1)) / math.sqrt(5)  # t = 2.5, p = .033
    lengths = [pairs(loss_cell, 0.0, seq_len=length) for length in (512, 1024)]
    alone = pairs(loss_cell, shift, noise)
    assert judge(alone)["adamw_loss"].verdict == "refuted"
    found = judge([*alone, *lengths[0], *lengths[1]])["adamw_loss"]
    assert [part.verdict for part in found.parts] == ["refuted", "reproduced", "reproduced"]
    assert found.verdict == "inconclusive"
    assert "the whole is refuted at 0.05/3, reached by none" in found.sentence


def test_an_interim_look_gives_no_verdict(
    judge: Callable, loss_cell: Maker, tmp_path: Path, write_study: Callable[..., Path]
) -> None:
    """Five of eight planned pairs are not judged; open cells of another arm do not matter."""
    for shift, word in ((0.0, "reproduced"), (0.05, "refuted")):
        records = pairs(loss_cell, shift)
        plan = [{"id": item.id, "part": item.part, "label": item.label} for item in records]
        absent = [loss_cell(name, seed) for seed in (5, 6, 7) for name in ("adamw", "gefen")]
        more = [{"id": item.id, "part": item.part, "label": item.label} for item in absent]
        found = judge(records, cells=[*plan, *more])["adamw_loss"]
        assert found.verdict == "inconclusive"
        assert "Interim: 5 of 8 planned pairs" in found.sentence
        others = [{**item, "label": item["label"].replace("gefen", "lion")} for item in more
                  if "gefen" in item["label"]]  # fmt: skip
        assert judge(records, cells=[*plan, *others])["adamw_loss"].verdict == word


def test_seeds_that_only_the_baseline_has_keep_a_good_result_open(
    judge: Callable, loss_cell: Maker
) -> None:
    records = pairs(loss_cell, 0.0) + [loss_cell("adamw", seed, 3.0) for seed in range(5, 15)]
    found = judge(records)["adamw_loss"]
    assert found.verdict == "inconclusive"
    assert "absent where the baseline finished (seed 5, seed 6" in found.sentence


def test_a_rate_from_the_edge_of_a_grid_is_said(judge: Callable, loss_cell: Maker) -> None:
    """configs/tuned/gefen_refine_gpt2_3m.yaml: Gefen's best, 0.000707, is the smallest tried."""
    records = pairs(loss_cell, 0.0, model="gpt2_3m", seq_len=128)
    assert "edge" not in judge(records)["adamw_loss"].sentence
    for record in records[5:]:
        record.config["optimizer"]["lr"] = 0.000707
    sentence = judge(records)["adamw_loss"].sentence
    assert "0.000707 for gefen (configs/tuned/gefen_refine_gpt2_3m)" in sentence


def test_a_crashed_cell_is_left_out_by_name(judge: Callable, loss_cell: Maker) -> None:
    records = pairs(loss_cell, 0.0)
    records[2] = loss_cell("adamw", 2, status="crashed")
    found = judge(records)["adamw_loss"]
    assert found.verdict == "inconclusive"
    assert found.n == 4
    assert "seed 2 (adamw crashed" in found.sentence


def test_an_unfinished_schedule_is_not_compared(judge: Callable, loss_cell: Maker) -> None:
    records = pairs(loss_cell, 0.0)
    short = loss_cell("gefen", 4, 3.0)
    short.metrics["steps"] = 200
    records[-1] = short
    assert "stopped at step 200 of 300" in judge(records)["adamw_loss"].sentence


def test_mixed_learning_rates_are_refused(judge: Callable, loss_cell: Maker) -> None:
    records = [*pairs(loss_cell, 0.0), loss_cell("gefen", 0, 2.0, lr=2e-3)]
    found = judge(records)["adamw_loss"]
    assert found.verdict == "not tested"
    assert "optimizer.lr = 0.001 and 0.002" in found.sentence


def test_different_conditions_are_refused(judge: Callable, loss_cell: Maker) -> None:
    records = [loss_cell("adamw", seed, loss) for seed, loss in PAIRS]
    records += [loss_cell("gefen", seed, loss, micro_batch=8) for seed, loss in PAIRS]
    found = judge(records)["adamw_loss"]
    assert found.verdict == "not tested"
    assert "micro_batch is 8 against 4" in found.sentence


def test_another_number_of_steps_is_refused(judge: Callable, loss_cell: Maker) -> None:
    records = [loss_cell("adamw", seed, loss) for seed, loss in PAIRS]
    records += [loss_cell("gefen", seed, loss, steps=600) for seed, loss in PAIRS]
    assert "steps 600 against 300" in judge(records)["adamw_loss"].sentence


def test_a_demonstration_gives_no_verdict_on_loss(judge: Callable, loss_cell: Maker) -> None:
    found = judge(pairs(loss_cell, 0.05), demonstration=True)["adamw_loss"]
    assert found.verdict == "not tested"
    assert "demonstration" in found.sentence


def test_an_absent_subject_is_not_tested(full_study: Path) -> None:
    verdicts = evaluate(load(full_study), load_claims(claims_folder()))
    published = [item for item in verdicts if item.subject == "published code"]
    assert [item.verdict for item in published] == ["not tested"] * 3
    assert all("gefen_upstream" in item.sentence for item in published)


def test_verdicts_carry_command_and_known_cells(full_study: Path) -> None:
    data = load(full_study)
    for verdict in evaluate(data, load_claims(claims_folder())):
        assert verdict.command == "gefen-bench study=synthetic"
        assert set(verdict.cells) <= set(data.runs["id"])


def test_claim_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no claim"):
        load_claims(tmp_path)
    path = tmp_path / "wrong.yaml"
    path.write_text("id: x\ncolour: red\n")
    with pytest.raises(ReportError, match=r"wrong\.yaml has the unknown key 'colour'"):
        load_claims(tmp_path)
    whole = dict.fromkeys([item.name for item in dataclasses.fields(Claim)][:7], "x")
    whole["subjects"] = {"ours": "gefen"}
    path.write_text(yaml.safe_dump(whole))
    known = "capacity, loss_spikes, lowest_peak, none"
    with pytest.raises(ReportError, match=f"estimator 'x'; known: {known}"):
        load_claims(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"margin": "small"}, r"margin='small'; it must be a number"),
        ({"subjects": ["gefen"]}, r"it must be a mapping of names to text"),
        ({"studies": [1]}, r"studies=\[1\]; it must be a list of names"),
        ({"min_seeds": 2.5}, r"it must be a whole number"),
        ({"hypothesis": "equal"}, r"hypothesis 'equal'; known: not_worse, better, same"),
        ({"allow_different": ["lr"]}, r"allowed are data_hash, code_hash, device, precision"),
        ({"alpha": 1.5}, r"alpha 1.5; it must lie between 0 and 1"),
        ({"missing": {"theirs": "x"}}, r"has missing.theirs, but no such subject"),
        ({"estimator": "none"}, r"`missing` must say why for ours and published code"),
    ],
)
def test_a_wrong_value_in_a_claim_is_one_sentence(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    values = yaml.safe_load((claims_folder() / "adamw_loss.yaml").read_text())
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(values | change))
    with pytest.raises(ReportError, match=words):
        load_claims(tmp_path)


def test_two_files_with_one_id_are_refused(tmp_path: Path) -> None:
    text = (claims_folder() / "adamw_loss.yaml").read_text()
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(ReportError, match="which another file has too"):
        load_claims(tmp_path)


def test_every_claim_of_the_protocol_has_a_file() -> None:
    protocol = """state_8x gib_per_billion adamw_loss lowest_peak no_new_hyperparameters
    step_latency bigger_microbatch capacity_one_device finetune modern_decoders stam_spikes
    stam_lr_robust stam_faster stam_accuracy stamlite_state scale"""
    claims = load_claims(claims_folder())
    assert set(protocol.split()) <= set(claims)
    assert all(claim.source and claim.text for claim in claims.values())
    assert all(name == claim.id for name, claim in claims.items())


def test_a_claim_that_no_file_holds_is_said(
    judge: Callable, memory_cell: Maker, tmp_path: Path
) -> None:
    judge([memory_cell("adamw")], claims=["faster_than_light"])
    verdicts = evaluate(load(tmp_path / "study"), load_claims(claims_folder()))
    assert [item.verdict for item in verdicts] == ["not tested"]
    assert "faster_than_light" in verdicts[0].sentence


def test_a_loss_on_the_split_that_tuned_is_no_verdict(judge: Callable, loss_cell: Maker) -> None:
    found = judge(pairs(loss_cell, 0.0, eval_split="validation"))["adamw_loss"]
    assert found.verdict == "not tested"
    assert "validation split" in found.sentence


def test_runs_that_failed_where_the_baseline_finished_keep_it_open(
    judge: Callable, loss_cell: Maker
) -> None:
    records = pairs(loss_cell, 0.0)
    records += [loss_cell("adamw", 9, 3.0), loss_cell("gefen", 9, status="oom")]
    found = judge(records)["adamw_loss"]
    assert found.n == 5
    assert found.verdict == "inconclusive"
    assert "failed where the baseline finished (seed 9)" in found.sentence


def test_two_cells_of_one_seed_are_refused(judge: Callable, loss_cell: Maker) -> None:
    records = [*pairs(loss_cell, 0.0), loss_cell("gefen", 0, 2.0, salt="again")]
    found = judge(records)["adamw_loss"]
    assert found.verdict == "not tested"
    assert "several gefen cells have the same seeds" in found.sentence


def test_an_empty_list_of_claims_asks_for_none(judge: Callable, loss_cell: Maker) -> None:
    assert judge(pairs(loss_cell, 0.0), claims=[]) == {}


def test_a_plan_that_changed_and_what_it_left_out_are_told(
    judge: Callable, loss_cell: Maker
) -> None:
    looks = [{"utc": "2026-01-02T03:04:05+00:00"}, {"utc": "2026-01-03T00:00:00+00:00"}]
    cells = pairs(loss_cell, 0.05)
    assert "planned" not in judge(cells, looks=looks[:1])["adamw_loss"].sentence
    sentence = judge(cells, looks=looks, unlisted_cells=["a"])["adamw_loss"].sentence
    assert "The study was planned 2 times (2026-01-02 and 2026-01-03)." in sentence
    assert "1 recorded cell outside its plan not counted." in sentence
    sentence = judge(cells, looks=[*looks, looks[1]])["adamw_loss"].sentence
    assert "The study was planned 3 times (2026-01-02 and 2026-01-03)." in sentence
