"""The entry points: files, the page, sentences for broken input, and no torch."""

import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from harness.cells.store import Record
from reports.data.load import load
from reports.page.claims_app import claims_main
from reports.page.report import report_main

ROOT = Path(__file__).resolve().parents[3]
Maker = Callable[..., Record]


class Page(HTMLParser):
    """Collects ids, link targets and everything that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.ids += [values["id"]] if "id" in values else []
        if tag == "a":
            self.links.append(values["href"])
        elif "href" in values:
            self.loads.append(values["href"])
        self.loads += [values[key] for key in ("src", "srcset", "data") if key in values]


@pytest.fixture(scope="module")
def report(full_study: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The report of the full synthetic study, made in a process of its own: folder and output."""
    folder = tmp_path_factory.mktemp("report")
    code = (
        "import sys; from reports.page.report import report_main; "
        f"code = report_main([{str(full_study)!r}, '-o', {str(folder)!r}]); "
        "print('TORCH', 'torch' in sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_torch_is_not_imported(report: tuple[Path, str]) -> None:
    assert "TORCH False" in report[1]


def test_the_terminal_ends_with_verdicts_and_the_page(report: tuple[Path, str]) -> None:
    folder, output = report
    lines = output.splitlines()
    assert max(map(len, [line for line in lines if not line.startswith("Report")])) <= 100
    head = "INCONCLUSIVE state_8x (ours) [gpt2_124m, 256 tokens"
    assert any(line.strip().startswith(head) for line in lines)
    assert f"Report: {folder / 'index.html'}" in lines


def test_every_file_is_written(report: tuple[Path, str]) -> None:
    names = {path.name for path in report[0].iterdir()}
    figures = ("loss_tokens", "loss_seconds", "loss_difference", "final_loss", "memory")
    for name in (*figures, "state_bytes", "step_time", "step_ratio"):
        assert {f"{name}.png", f"{name}.svg"} <= names
    assert {"index.html", "runs.csv", "summary.csv", "verdicts.csv", "summary.md"} <= names


def test_the_page_loads_nothing_from_outside(report: tuple[Path, str]) -> None:
    text = (report[0] / "index.html").read_text()
    page = Page()
    page.feed(text)
    assert len(page.loads) == 8
    assert all(link.startswith("data:image/png;base64,") for link in page.loads)
    assert not re.search(r"@import|url\(|<script|<link", text)


def test_each_cell_is_named_and_linked(report: tuple[Path, str], full_study: Path) -> None:
    page = Page()
    page.feed((report[0] / "index.html").read_text())
    anchors = [name for name in page.ids if name.startswith("cell-")]
    assert sorted(anchors) == sorted(f"cell-{cell}" for cell in load(full_study).runs["id"])
    assert {link[1:] for link in page.links if link.startswith("#cell-")} == set(anchors)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_csv_keeps_raw_units(report: tuple[Path, str], full_study: Path) -> None:
    table = pd.read_csv(report[0] / "runs.csv").set_index("id")
    runs = load(full_study).runs.set_index("id")
    assert len(table) == len(runs)
    counted = runs["optimizer_state_bytes"].dropna()
    assert (table.loc[counted.index, "optimizer_state_bytes"] == counted).all()
    verdicts = pd.read_csv(report[0] / "verdicts.csv")
    assert set(verdicts["claim"]) == {"state_8x", "gib_per_billion", "adamw_loss"}


def test_a_demonstration_says_so_and_text_is_escaped(
    tmp_path: Path, write_study: Callable[..., Path], memory_cell: Maker
) -> None:
    broken = memory_cell("gefen", status="oom", error="<b>no room</b>")
    study = write_study(tmp_path / "s", [memory_cell("adamw"), broken], demonstration=True)
    assert report_main([str(study)]) == 0
    text = (study / "report" / "index.html").read_text()
    assert "Demonstration." in text
    assert "&lt;b&gt;no room&lt;/b&gt;" in text


def test_planned_cells_without_a_record_are_listed(
    tmp_path: Path,
    write_study: Callable[..., Path],
    memory_cell: Maker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = [memory_cell("adamw"), memory_cell("gefen")]
    study = write_study(tmp_path / "s", records)
    (study / "cells" / records[1].id / "record.json").unlink()
    assert report_main([str(study)]) == 0
    assert f"not run yet: {records[1].label}" in capsys.readouterr().out
    assert "not run yet" in (study / "report" / "index.html").read_text()


def break_nothing(study: Path) -> None:
    """Removes the whole folder."""
    for path in sorted(study.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    study.rmdir()


def break_records(study: Path) -> None:
    """Leaves a study without records."""
    for path in study.glob("cells/*/record.json"):
        path.unlink()


def break_one(study: Path) -> None:
    """Cuts one record off in the middle."""
    path = next(study.glob("cells/*/record.json"))
    path.write_text(path.read_text()[:100])


def break_curve(study: Path) -> None:
    """Overwrites a curve with something else."""
    next(study.glob("cells/*")).joinpath("curve.parquet").write_bytes(b"not parquet")


def break_study(study: Path) -> None:
    """Removes the study's own file."""
    (study / "study.json").unlink()


def break_config(study: Path) -> None:
    """Takes the optimizer out of a record."""
    path = next(study.glob("cells/*/record.json"))
    path.write_text(path.read_text().replace('"optimizer"', '"optimiser"'))


@pytest.mark.parametrize("main", [report_main, claims_main])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_nothing, "is not a folder"),
        (break_records, "holds no record yet"),
        (break_one, "record.json is not readable JSON"),
        (break_curve, "curve.parquet is not readable Parquet"),
        (break_study, "study.json does not exist"),
        (break_config, "'optimizer'"),
    ],
)
def test_broken_input_is_one_sentence(
    main: Callable[[list[str]], int],
    damage: Callable[[Path], None],
    words: str,
    tmp_path: Path,
    write_study: Callable[..., Path],
    memory_cell: Maker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = write_study(tmp_path / "s", [memory_cell("adamw")])
    damage(study)
    assert main([str(study)]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""


def test_claims_are_listed_and_judged(full_study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert claims_main(["--list"]) == 0
    assert "adamw_loss: Pretraining loss at AdamW's level" in capsys.readouterr().out
    assert claims_main([str(full_study)]) == 0
    output = capsys.readouterr().out
    assert "command: gefen-bench study=synthetic" in output
    assert load(full_study).runs["id"].iloc[0] in output


def test_an_output_that_cannot_be_written_is_one_sentence(
    full_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert report_main([str(full_study), "-o", str(tmp_path / "file" / "report")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        report_main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "gefen-report runs/reproduce" in text
    assert "Exit code" in text
