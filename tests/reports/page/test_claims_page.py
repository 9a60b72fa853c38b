"""gefen-claims over folders: one verdict a claim and subject, and every number traced by hand."""

import json
import math
import re
import shutil
import statistics
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.cells.store import Record
from reports.claims.claim import again
from reports.claims.files import claims_folder, load_claims
from reports.claims.judge import judge_claims
from reports.data.sources import discover
from reports.page.claims_app import claims_main

ROOT = Path(__file__).resolve().parents[3]
Maker = Callable[..., Record]
Cell = dict[str, Any]


def step_document() -> dict[str, Any]:
    """What gefen-step writes, with invented times: three candidates in five processes."""
    runs = []
    for turn in range(5):
        times = {"adamw_fused": 0.004 + 1e-4 * turn, "gefen": 0.018, "gefen_4bit": 0.002}
        entries = {
            name: {"step_median_seconds": time * (1 + 0.01 * turn), "optimizer_state_bytes": 8}
            for name, time in times.items()
        }
        runs.append({"candidates": entries, "failed": {}, "threads": 2})
    provenance = {"command": "gefen-step --model gpt2_3m", "code_hash": "e" * 64, "data_hash": ""}
    names = {name: name.partition("_")[0] for name in runs[0]["candidates"]}
    condition = {"model": "gpt2_3m", "precision": "fp32", "parameters": 1, "runs": runs}
    return {
        "schema_version": 1,
        "kind": "step_bench",
        "device": "cpu",
        "reference": "adamw_fused",
        "optimizers": names,
        "provenance": provenance,
        "conditions": [condition],
    }


@pytest.fixture(scope="module")
def published(
    tmp_path_factory: pytest.TempPathFactory,
    write_study: Callable[..., Path],
    memory_cell: Maker,
    loss_cell: Maker,
) -> Path:
    """Two studies of different code that both can answer some claims, and a step benchmark."""
    root = tmp_path_factory.mktemp("claims") / "results"
    noise = [0.001, -0.002, 0.0005, 0.002, -0.001]

    def records(shift: float, code: str) -> list[Record]:
        cells = [memory_cell(name, code_hash=code) for name in ("adamw", "gefen")]
        for cell, peak in zip(cells, (2.0e9, 1.2e9), strict=True):
            cell.metrics |= {"peak_first_step_bytes": peak, "peak_steady_step_bytes": 0.9 * peak}
        for seq_len in (128, 512):
            for seed, extra in enumerate(noise):
                base, more = 3.0 + 0.02 * seed, shift + extra * seq_len / 128
                given = {"seq_len": seq_len, "code_hash": code}
                cells.append(loss_cell("adamw", seed, base, **given))
                cells.append(loss_cell("gefen", seed, base + more, **given))
        return cells

    write_study(root / "convergence", records(0.0, "a" * 64), name="convergence")
    write_study(root / "reproduce_full", records(0.05, "c" * 64), name="reproduce_full")
    (root / "step_cpu").mkdir()
    (root / "step_cpu" / "step_bench.json").write_text(json.dumps(step_document()))
    return root


@pytest.fixture
def results(published: Path, tmp_path: Path) -> Path:
    """A copy of the synthetic results that a test may change."""
    return shutil.copytree(published, tmp_path / "results")


@pytest.fixture(scope="module")
def judged(published: Path) -> Path:
    """The folder that gefen-claims wrote about the synthetic results; read only."""
    folder = published.parent / "claims"
    assert claims_main(["--from", str(published), "-o", str(folder)]) == 0
    return folder


def record_of(folder: Path, path: str) -> Cell:
    """The JSON value that a `record` of cells.csv points to: FILE, FILE#LINE or FILE#POINTER."""
    name, _, pointer = path.partition("#")
    text = (folder / name).read_text()
    if pointer.startswith("L"):
        return json.loads(text.split("\n")[int(pointer[1:]) - 1])
    value = json.loads(text)
    for key in pointer.split("/")[1:]:
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def name_of(cell: Cell) -> str:
    return cell["config"]["optimizer"]["name"]


def ratio_of_bytes(cells: list[Cell]) -> float:
    sizes = {name_of(cell): cell["metrics"]["optimizer_state_bytes"] for cell in cells}
    return sizes["adamw"] / sizes["gefen"]


def held(cell: Cell) -> float:
    """Counted state and the tables outside it."""
    metrics = cell["metrics"]
    return float(metrics["optimizer_state_bytes"] + metrics["optimizer_tables_bytes"])


def saving(cells: list[Cell]) -> float:
    sizes = {name_of(cell): cell["metrics"]["optimizer_state_bytes"] for cell in cells}
    parameters = cells[0]["metrics"]["parameters"]
    return (sizes["adamw"] - sizes["gefen"]) / 1024**3 / (parameters / 1e9)


def peak_lead(cells: list[Cell]) -> float:
    peaks = {name_of(cell): cell["metrics"]["peak_first_step_bytes"] for cell in cells}
    return peaks["adamw"] / peaks["gefen"]


def off_stated(cells: list[Cell]) -> float:
    each = [cell["metrics"] for cell in cells]
    both = [
        (item["optimizer_state_bytes"], item["optimizer_state_predicted_bytes"]) for item in each
    ]
    return max(abs(counted - stated) / stated * 100 for counted, stated in both)


def loss_difference(cells: list[Cell]) -> float:
    """Mean difference over pairs; of several lengths that with the highest bound, if all
    reproduce, and the clearest of those that refute, at 0.05 shared by them."""
    found = []
    for seq_len in {cell["config"]["seq_len"] for cell in cells}:
        losses = {
            (name_of(cell), cell["config"]["seed"]): cell["metrics"]["final_eval_loss"]
            for cell in cells
            if cell["config"]["seq_len"] == seq_len
        }
        seeds = {seed for _, seed in losses}
        differences = [losses["gefen", seed] - losses["adamw", seed] for seed in seeds]
        mean, error = statistics.mean(differences), statistics.stdev(differences) / math.sqrt(5)
        found.append((mean - 2.131847 * error, mean + 2.131847 * error, mean))
    refuting = [item for item in found if item[0] > 0.01]
    return max(refuting)[2] if refuting else max(found, key=lambda item: item[1])[2]


def time_ratio(cells: list[Cell]) -> float:
    """The first half are the subject's times, the second half the baseline's, in turns."""
    logs = [math.log(cell["step_median_seconds"]) for cell in cells]
    half = len(logs) // 2
    return math.exp(statistics.mean(logs[:half]) - statistics.mean(logs[half:]))


BY_HAND = {
    "state_8x": ratio_of_bytes,
    "gib_per_billion": saving,
    "lowest_peak": peak_lead,
    "stated_state": off_stated,
    "adamw_loss": loss_difference,
    "no_new_hyperparameters": loss_difference,
    "gefen_loss": loss_difference,
    "step_parity": time_ratio,
}


def test_every_estimate_follows_from_the_cells_that_it_names(judged: Path) -> None:
    claims = pd.read_csv(judged / "claims.csv", keep_default_na=False)
    cells = pd.read_csv(judged / "cells.csv").set_index(["study", "id"])["record"]
    numbers = claims[claims["estimate"] != ""]
    assert set(numbers["claim"]) == set(BY_HAND)
    assert {"verdict", "other records"} == set(numbers["role"])
    for row in numbers.to_dict("records"):
        named = [cells[row["study"], identity] for identity in row["cells"].split()]
        found = BY_HAND[row["claim"]]([record_of(judged, path) for path in named])
        assert float(row["estimate"]) == pytest.approx(found, rel=1e-9, abs=1e-12), row
        codes = {path.split("/")[-4] for path in named if path.endswith("record.json")}
        assert codes <= {row["study"]}  # no verdict takes cells of two studies


def test_the_first_study_that_a_claim_names_gives_the_verdict(judged: Path) -> None:
    claims = pd.read_csv(judged / "claims.csv", keep_default_na=False)
    loss = claims[(claims["claim"] == "adamw_loss") & (claims["subject"] == "ours")]
    overall = loss[loss["scope"] == "overall"].set_index("role")
    assert overall.loc["verdict", "study"] == "convergence"
    assert overall.loc["verdict", "verdict"] == "reproduced"
    assert overall.loc["verdict", "code"] == "aaaaaaaa"
    assert overall.loc["other records", "study"] == "reproduce_full"
    assert overall.loc["other records", "verdict"] == "refuted"
    assert overall.loc["other records", "code"] == "cccccccc"


def test_every_claim_and_subject_has_one_verdict(judged: Path) -> None:
    claims = pd.read_csv(judged / "claims.csv", keep_default_na=False)
    verdicts = claims[(claims["role"] == "verdict") & (claims["scope"] == "overall")]
    known = load_claims(claims_folder()).values()
    wanted = [(claim.id, subject) for claim in known for subject in claim.subjects]
    assert sorted(zip(verdicts["claim"], verdicts["subject"], strict=True)) == sorted(wanted)
    assert (verdicts["sentence"].str.len() > 10).all()
    answered = verdicts[verdicts["verdict"] != "not tested"]
    assert (answered["cells"] != "").all()
    assert (answered["command"] != "").all()
    published = verdicts[verdicts["subject"] == "published code"]
    assert set(published["verdict"]) == {"not tested"}


class Links(HTMLParser):
    """Ids and link targets of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.ids += [values["id"]] if "id" in values else []
        self.targets += [values["href"]] if "href" in values else []


def test_links_of_the_page_reach_cells_and_their_records(judged: Path) -> None:
    text = (judged / "index.html").read_text()
    page = Links()
    page.feed(text)
    assert len(page.ids) == len(set(page.ids))
    inside = {target[1:] for target in page.targets if target.startswith("#")}
    assert inside <= set(page.ids)
    files = [target for target in page.targets if not target.startswith("#")]
    rows = pd.read_csv(judged / "cells.csv")
    assert sorted(files) == sorted(rows["record"])
    assert all(record_of(judged, target) for target in files)
    assert not re.search(r"@import|url\(|<script|<link|https?://", text)


def test_markdown_names_cells_and_commands(judged: Path) -> None:
    text = (judged / "claims.md").read_text()
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets
    assert all(record_of(judged, target) for target in targets)
    assert "Run again: `gefen-bench study=synthetic`" in text
    assert "| adamw_loss" in text


def test_a_turn_that_failed_is_a_status(results: Path) -> None:
    path = results / "step_cpu" / "step_bench.json"
    document = json.loads(path.read_text())
    run = document["conditions"][0]["runs"][4]
    del run["candidates"]["gefen"]
    run["failed"] = {"gefen": "Out of memory."}
    path.write_text(json.dumps(document))
    claims = {"step_parity": load_claims(claims_folder())["step_parity"]}
    (found, _) = judge_claims(claims, discover([results]))
    assert found.verdict.n == 4
    assert found.verdict.verdict == "inconclusive"
    assert "gefen: crashed (/conditions/0/runs/4/candidates/gefen)" in found.verdict.sentence


def test_a_process_that_gave_nothing_keeps_a_good_time_open(results: Path) -> None:
    """gefen_4bit takes 0.002 s beside 0.004 s; a sixth process timed out."""
    path = results / "step_cpu" / "step_bench.json"
    document = json.loads(path.read_text())
    claims = {"step_parity": load_claims(claims_folder())["step_parity"]}
    (_, found) = judge_claims(claims, discover([results]))
    assert found.verdict.verdict == "reproduced"
    document["conditions"][0]["failed_processes"] = ["no result within 600 s"]
    path.write_text(json.dumps(document))
    (_, found) = judge_claims(claims, discover([results]))
    assert found.verdict.verdict == "inconclusive"
    assert found.verdict.n == 5
    assert "gefen_4bit: crashed (/conditions/0/failed_processes/0" in found.verdict.sentence


def test_shared_cells_are_marked_and_self_checks_counted_apart(
    judged: Path, published: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    claims = pd.read_csv(judged / "claims.csv", keep_default_na=False)
    verdicts = claims[(claims["role"] == "verdict") & (claims["scope"] == "overall")]
    rows = {(row["claim"], row["subject"]): row for row in verdicts.to_dict("records")}
    both = [{*rows[name, "ours"]["cells"].split()} for name in ("adamw_loss", "lowest_peak")]
    assert both[0].isdisjoint(both[1])
    assert rows["adamw_loss", "ours"]["cells"] == rows["no_new_hyperparameters", "ours"]["cells"]
    said = rows["adamw_loss", "ours"]["shared"]
    assert "no_new_hyperparameters (20)" in said
    assert "lowest_peak" not in said
    assert rows["adamw_loss", "published code"]["shared"] == ""
    checks = verdicts[verdicts["kind"] == "self-check"]
    assert set(checks["claim"]) == {"stated_state"}
    assert rows["adamw_loss", "ours"]["tested"] == (
        "gpt2_4m, 128 and 512 tokens, 300 training steps, fp32, cpu"
    )
    assert claims_main(["--from", str(published), "-o", str(tmp_path / "out")]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert f"{len(verdicts) - len(checks)} verdicts: " in output
    assert f"{len(checks)} self-checks: " in output
    assert "adamw_loss (ours) [gpt2_4m, 128 and 512 tokens" in output


def test_a_study_that_cannot_answer_leaves_it_to_the_next_and_is_named(
    results: Path, tmp_path: Path, write_study: Callable[..., Path], loss_cell: Maker
) -> None:
    records = [loss_cell("adamw", 0, 3.0), loss_cell("gefen", 0, 3.0, micro_batch=8)]
    write_study(tmp_path / "results" / "convergence", records, name="convergence")
    claims = {"adamw_loss": load_claims(claims_folder())["adamw_loss"]}
    (found, _) = judge_claims(claims, discover([results]))
    assert found.verdict.study == "reproduce_full"
    assert "Records of convergence come first but cannot answer" in found.verdict.sentence
    assert "micro_batch is 8 against 4" in found.others[0].sentence


def test_the_flag_compares_what_differs_and_warns(
    tmp_path: Path,
    write_study: Callable[..., Path],
    memory_cell: Maker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = [memory_cell("adamw"), memory_cell("gefen", device="cuda", code_hash="c" * 64)]
    study = write_study(tmp_path / "s", records)
    assert claims_main([str(study)]) == 0
    assert "WARNING" not in capsys.readouterr().out
    assert claims_main([str(study), "--allow-different", "code_hash,device"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "INCONCLUSIVE state_8x" in output  # of the claim's two precisions one was measured
    assert (
        "WARNING: compared although they differ in code hash cccccccc against aaaaaaaa; " in output
    )
    assert "device cuda against cpu" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--allow-different", "lr"], "--allow-different lr is not known; allowed are data_hash"),
        (["--from", "/nowhere"], "/nowhere is not a folder"),
        (["--from", "{empty}"], "holds no study"),
        (["--claims", "{empty}"], "holds no claim"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    given = [text.format(empty=tmp_path / "empty") for text in arguments]
    assert claims_main([*given, "-o", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""


def test_two_folders_of_one_name_are_refused(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--from", str(results), str(results / "convergence"), "-o", str(tmp_path / "out")]
    assert claims_main(given) == 2
    assert "are both named convergence" in capsys.readouterr().err


def test_the_published_records_are_judged(tmp_path: Path) -> None:
    """`make claims`: every cell that a verdict names lies under results/."""
    folder = tmp_path / "claims"
    assert claims_main(["-o", str(folder)]) == 0
    rows = pd.read_csv(folder / "cells.csv")
    assert len(rows) > 50
    paths = {(folder / record.partition("#")[0]).resolve() for record in rows["record"]}
    assert all(path.is_relative_to(ROOT / "results") and path.is_file() for path in paths)
    claims = pd.read_csv(folder / "claims.csv", keep_default_na=False)
    state = claims[(claims["claim"] == "state_8x") & (claims["role"] == "verdict")].iloc[0]
    counted = {
        (cell["config"]["model"]["name"], cell["config"]["precision"], name_of(cell)): cell
        for cell in (
            record_of(folder, path) for path in rows["record"] if "/records.jsonl#L" in path
        )
        if cell["id"] in state["cells"].split()
    }
    ratios = [
        held(counted[model, precision, "adamw"]) / held(cell)
        for (model, precision, name), cell in counted.items()
        if name == "gefen"
    ]
    assert float(state["estimate"]) == pytest.approx(min(ratios))


def test_a_command_to_run_again_is_free_of_this_machine() -> None:
    words = "gefen-bench study=memory root=/tmp/s/mem 'study.parts.a.sweep.model=[gpt2_3m]'"
    expected = "gefen-bench study=memory 'study.parts.a.sweep.model=[gpt2_3m]'"
    assert again(f"{words} tracker=none tracker.mode=offline") == expected
