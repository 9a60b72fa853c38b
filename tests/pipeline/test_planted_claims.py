"""Claims known to be false, from the worker to the verdict: the instrument must refute them.

Real cells in fresh processes, judged from their records alone. Each fault is planted in one
quantity; true claims about the same cells show that not everything is refuted.
"""

import math
import shutil
import statistics
from pathlib import Path

import pytest

from harness.cells import store
from reports.claims.claim import Verdict
from reports.claims.files import load_claims
from reports.claims.judge import evaluate
from reports.data.load import load
from reports.tables.byte_audit import audit

from .conftest import HERE, Pipeline, records

pytestmark = pytest.mark.timeout(900)  # the fixture's studies, on a machine that does other work


def verdicts_of(study: Path) -> dict[str, Verdict]:
    """The verdicts of one study by "claim: subject"."""
    found = evaluate(load(study), load_claims(HERE / "claims"))
    return {f"{item.claim}: {item.subject}": item for item in found}


@pytest.fixture(scope="session")
def verdicts(pipeline: Pipeline) -> dict[str, Verdict]:
    return {
        name: verdict
        for folder in (pipeline.time, pipeline.bytes, pipeline.loss)
        for name, verdict in verdicts_of(folder).items()
        if verdict.verdict != "not tested"
    }


@pytest.mark.parametrize(
    ("claim", "cells"),
    [("planted_state: planted", 1), ("planted_time: planted", 10), ("planted_loss: planted", 10)],
)
def test_a_planted_false_claim_is_refuted(
    verdicts: dict[str, Verdict], claim: str, cells: int
) -> None:
    found = verdicts[claim]
    assert found.verdict == "refuted", found.sentence
    assert len(found.cells) == cells


@pytest.mark.parametrize(
    "claim",
    [
        "honest_state: AdamW",
        "honest_state: planted slow",
        "honest_time: planted slow",
        "honest_loss: planted worse",
    ],
)
def test_a_true_claim_is_reproduced(verdicts: dict[str, Verdict], claim: str) -> None:
    assert verdicts[claim].verdict == "reproduced", verdicts[claim].sentence


def test_the_instruments_without_their_faults_are_not_refuted(
    verdicts: dict[str, Verdict], pipeline: Pipeline
) -> None:
    """False positives: the same code, limits and margins, and nothing to find."""
    time = verdicts["planted_time: without the fault"]
    assert time.verdict != "refuted", time.sentence
    assert time.n == 5
    (control,) = metrics(pipeline.loss, "planted_worse_none", "final_eval_loss")
    assert control in metrics(pipeline.loss, "adamw", "final_eval_loss")


def test_what_lies_outside_the_state_is_held_against_it(pipeline: Pipeline) -> None:
    """State, closed form and checkpoint of the hidden one agree; what it holds does not."""
    table = audit(load(pipeline.bytes).runs).set_index("variant")
    flags = table["flag"]
    (held,) = metrics(pipeline.bytes, "adamw", "optimizer_state_bytes")
    hidden = table.loc["planted_hidden"]
    assert hidden["counted_bytes"] == hidden["closed_form_bytes"]
    assert hidden["counted_bytes"] + hidden["outside_bytes"] == held
    assert "outside its state" in flags["planted_hidden"]
    assert "above the closed form" in flags["planted_bloat"]
    assert flags["adamw"] == ""


def metrics(study: Path, optimizer: str, name: str) -> list[float]:
    """A metric of all cells of one optimizer, straight from the record files."""
    _, found = store.load_study(study)
    return [r.metrics[name] for r in found if shown_name(r) == optimizer]


def shown_name(record: store.Record) -> str:
    """The name under which reports list the cell."""
    chosen = record.config["optimizer"]
    return str(chosen["variant"] or chosen["name"])


def test_the_bytes_were_counted_not_believed(pipeline: Pipeline) -> None:
    (counted,) = metrics(pipeline.bytes, "planted_bloat", "optimizer_state_bytes")
    (stated,) = metrics(pipeline.bytes, "planted_bloat", "optimizer_state_predicted_bytes")
    assert counted == 2 * stated
    # The same closed form is what AdamW really holds, so it is not the statement that is wrong.
    honest = metrics(pipeline.bytes, "adamw", "optimizer_state_bytes")
    assert honest == metrics(pipeline.bytes, "adamw", "optimizer_state_predicted_bytes")


def test_the_estimates_are_those_of_the_records(
    pipeline: Pipeline, verdicts: dict[str, Verdict]
) -> None:
    slow, fast = (
        [math.log(s) for s in metrics(pipeline.time, name, "step_median_seconds")]
        for name in ("planted_slow", "adamw")
    )
    ratio = math.exp(statistics.mean(slow) - statistics.mean(fast))
    assert verdicts["planted_time: planted"].estimate == pytest.approx(ratio, rel=1e-6)
    worse = metrics(pipeline.loss, "planted_worse", "final_eval_loss")
    base = metrics(pipeline.loss, "adamw", "final_eval_loss")
    difference = statistics.mean(worse) - statistics.mean(base)
    assert difference >= 0.05
    assert verdicts["planted_loss: planted"].estimate == pytest.approx(difference, rel=1e-6)


def test_timed_processes_took_turns(pipeline: Pipeline) -> None:
    _, found = store.load_study(pipeline.time)
    timed = sorted(found, key=lambda r: r.provenance["finished_utc"])
    there = ["adamw", "planted_slow", "planted_slow_none"]
    assert [shown_name(r) for r in timed] == [*there, *there[::-1]] * 2 + there
    ends = [r.provenance["finished_utc"] for r in timed]
    starts = [r.provenance["started_utc"] for r in timed]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


def test_a_killed_study_keeps_what_was_finished_and_runs_the_rest(pipeline: Pipeline) -> None:
    assert not pipeline.orphans
    assert len(pipeline.kept) == 2
    assert pipeline.killed not in pipeline.kept
    now = records(pipeline.loss)
    assert {cell: now[cell] for cell in pipeline.kept} == pipeline.kept
    assert pipeline.resumed.count("(kept)") == 2
    study, found = store.load_study(pipeline.loss)
    assert len(found) == len(study["cells"]) == 11
    assert {r.status for r in found} == {"done"}
    assert [r.id for r in found if r.attempt != 1] == [pipeline.killed]


def test_the_kill_does_not_change_a_verdict(
    pipeline: Pipeline, verdicts: dict[str, Verdict], tmp_path: Path
) -> None:
    assert pipeline.reference.id == pipeline.killed
    assert pipeline.reference.attempt == 1
    undisturbed = tmp_path / pipeline.loss.name
    shutil.copytree(pipeline.loss, undisturbed)
    store.write_record(store.cell_dir(undisturbed, pipeline.killed), pipeline.reference)
    for name, verdict in verdicts_of(undisturbed).items():
        assert verdict.verdict == verdicts[name].verdict
        assert verdict.estimate == verdicts[name].estimate
        assert verdict.interval == verdicts[name].interval
