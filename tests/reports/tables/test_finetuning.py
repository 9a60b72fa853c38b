"""The report's section on fine-tuning, and which cells the claims on loss are about."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cells import store
from reports.claims.files import claims_folder, load_claims
from reports.claims.judge import judge_one
from reports.data.labels import labels
from reports.data.load import ReportError, load
from reports.page.report import report_main
from reports.tables.finetuning import gains, samples_view

LOSSES = {
    "adamw": [1.500, 1.510, 1.490, 1.505, 1.495],
    "gefen": [1.501, 1.512, 1.489, 1.507, 1.496],
}
Make = Callable[..., store.Record]


def samples(optimizer: str, prompts: int = 5) -> list[dict[str, Any]]:
    """Prompts that all optimizers share; only AdamW's first completion is right."""
    return [
        {
            "prompt": f"def f{n}():\n    <b>{n}</b>",
            "completion": f"\n    return {n}",
            "before": "\n    pass",
            "after": f"\n    return {n}" if optimizer == "adamw" and n == 0 else f"{optimizer} {n}",
            "exact_before": False,
            "exact": optimizer == "adamw" and n == 0,
        }
        for n in range(prompts)
    ]


@pytest.fixture
def study(tmp_path: Path, loss_cell: Make, write_study: Callable[..., Path]) -> Path:
    """Five paired seeds of fine-tuning, and as many pretraining cells that end far apart."""
    records = []
    for optimizer, losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            tuned = loss_cell(optimizer, seed, loss, kind="finetune", model="smol", part="fine")
            tuned.metrics |= {
                "initial_eval_loss": 1.8,
                "pretrained": True,
                "samples": samples(optimizer),
                "samples_total": 5,
                "exact_matches_before": 0,
                "exact_matches": 1 if optimizer == "adamw" else 0,
            }
            worse = 5.0 + (optimizer == "gefen")
            records += [tuned, loss_cell(optimizer, seed, worse + loss, model="other")]
    return write_study(tmp_path / "study", records, claims=["finetune", "adamw_loss"])


def test_losses_spread_and_matches_are_those_of_the_records(study: Path) -> None:
    table = gains(load(study).runs).set_index("variant")
    for optimizer, losses in LOSSES.items():
        row, sd = table.loc[optimizer], statistics.stdev(losses)
        assert row["n"] == 5
        assert row["final_eval_loss"] == pytest.approx(statistics.mean(losses))
        assert row["fall_over_spread"] == pytest.approx((1.8 - statistics.mean(losses)) / sd)
        assert row["samples_total"] == 25
    assert (table.loc["adamw", "exact_matches"], table.loc["gefen", "exact_matches"]) == (5, 0)


def test_a_loss_before_over_another_text_gives_no_fall(study: Path) -> None:
    runs = load(study).runs
    for config in runs["config"]:
        config["task"] |= {"eval_tokens": 1024, "final_eval_tokens": 4096}
    assert gains(runs)["fall_over_spread"].isna().all()
    for config in runs["config"]:
        config["task"]["eval_tokens"] = 4096
    assert gains(runs)["fall_over_spread"].notna().all()


def test_too_small_a_fall_is_no_verdict_but_a_candidate_that_learns_nothing_is_refuted(
    study: Path,
) -> None:
    claim, data = load_claims(claims_folder())["finetune"], load(study)
    data.runs["initial_eval_loss"] = 1.57  # 9 times the spread, 0.0079, above a mean of 1.5
    found = judge_one(claim, "ours", data)
    assert found.verdict == "inconclusive"
    assert "The loss of adamw fell by 8.9 times the spread of its seeds" in found.sentence
    del data.runs["initial_eval_loss"]
    found = judge_one(claim, "ours", data)
    assert found.verdict == "inconclusive"
    assert "What the loss of adamw fell by on one text is not known" in found.sentence
    mine = data.runs["optimizer"] == "gefen"
    data.runs["initial_eval_loss"] = 1.8
    data.runs.loc[mine, "final_eval_loss"] += 0.3
    assert judge_one(claim, "ours", data).verdict == "refuted"


def test_samples_stand_side_by_side(study: Path) -> None:
    runs = load(study).runs
    view = samples_view(runs, labels(runs))
    first = view[view["prompt"] == "1"]
    assert list(first["text by"])[:3] == ["prompt", "a person", "before"]
    assert list(first["exact"]) == ["", "", "no", "yes", "no"]
    assert list(first["text"])[3:] == ["\n    return 0", "gefen 0"]
    assert view["prompt"].nunique() == 4


def test_the_claim_is_judged_from_fine_tuning_alone(study: Path) -> None:
    claims, data = load_claims(claims_folder()), load(study)
    found = judge_one(claims["finetune"], "ours", data)
    differences = [g - a for a, g in zip(*LOSSES.values(), strict=True)]
    assert found.verdict == "reproduced"
    assert found.estimate == pytest.approx(statistics.mean(differences))
    assert {
        record["task"] for record in data.runs[data.runs["id"].isin(found.cells)].to_dict("records")
    } == {"finetune"}
    pretraining = judge_one(claims["adamw_loss"], "ours", data)
    assert pretraining.verdict == "refuted"
    assert pretraining.estimate == pytest.approx(1.0 + statistics.mean(differences))
    shifted = replace(claims["finetune"], margin=-0.01)
    assert judge_one(shifted, "ours", data).verdict == "refuted"


def test_the_page_shows_texts_as_they_are(study: Path, tmp_path: Path) -> None:
    assert report_main([str(study), "-o", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert '<td class="text">def f0():\n    &lt;b&gt;0&lt;/b&gt;</td>' in page
    assert "What it changed" in page
    assert "def f4()" not in page  # a sample beyond those shown
    assert "Loss of completions" in (tmp_path / "out" / "summary.md").read_text()


def test_records_without_fine_tuning_have_no_section(full_study: Path) -> None:
    runs = load(full_study).runs
    assert gains(runs).empty
    assert samples_view(runs, labels(runs)).empty


def test_a_claim_on_an_unknown_task_is_refused(tmp_path: Path) -> None:
    text = (claims_folder() / "finetune.yaml").read_text()
    (tmp_path / "finetune.yaml").write_text(text.replace("task: finetune", "task: classify"))
    with pytest.raises(ReportError, match="task 'classify'; known: pretrain, finetune"):
        load_claims(tmp_path)
