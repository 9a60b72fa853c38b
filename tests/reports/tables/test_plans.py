"""Plans beside measurements: what gefen-plan --check --save leaves is what the page shows."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cells import store
from harness.planner.check import Comparison, save
from reports.data.load import ReportError, load
from reports.data.text import DASH, MINUS
from reports.page.report import report_main
from reports.tables.plans import plans, plans_view

Make = Callable[..., store.Record]


def comparison(cell: str, optimizer: str, peak: int, planned: int | None) -> Comparison:
    error = None if planned is None else (planned - peak) / peak
    place = ("gpt2_124m", "fp32", "cpu", 128)
    return Comparison(cell, "s", optimizer, *place, 10**6, 10**6, 0.0, peak, planned, error)


@pytest.fixture
def study(memory_cell: Make, write_study: Callable[..., Path], tmp_path: Path) -> Path:
    """Two cells that were planned, one of them without a peak, and a plan of a vanished cell."""
    records = [memory_cell("adamw"), memory_cell("gefen")]
    root = write_study(tmp_path / "runs/s", records, claims=[])
    items = [
        comparison(records[0].id, "adamw", 2 * 10**9, 16 * 10**8),
        comparison(records[1].id, "gefen", 2 * 10**9, None),
        comparison("0000", "lion", 10**9, 10**9),
    ]
    assert save(items, root.parent) == [root / "plan.json"]
    return root


def test_every_planned_cell_of_the_study_is_shown(study: Path) -> None:
    table = plans(study, load(study).runs)
    assert table["variant"].tolist() == ["adamw", "gefen"]
    assert table["peak_error"].iloc[0] == pytest.approx(-0.2)
    assert table["verdict"].tolist() == ["peak off", "not predicted"]
    view = plans_view(table, {"adamw": "AdamW", "gefen": "Gefen"})
    assert view["peak error"].tolist() == [f"{MINUS}20.0%", DASH]
    assert view["planned peak"].tolist() == ["1.49 GiB", DASH]


def test_the_page_has_the_table(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_main([str(study)]) == 0, capsys.readouterr().err
    assert "Plan against measurement" in (study / "report/index.html").read_text()
    assert (study / "report/plans.csv").is_file()
    (study / "plan.json").unlink()
    assert report_main([str(study), "-o", str(study / "again")]) == 0
    assert "Plan against measurement" not in (study / "again/index.html").read_text()


@pytest.mark.parametrize("text", ["{", "[]", '{"cells": 3}'])
def test_a_broken_file_is_one_sentence(
    study: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (study / "plan.json").write_text(text)
    with pytest.raises(ReportError, match="run it again"):
        plans(study, load(study).runs)
    assert report_main([str(study)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
