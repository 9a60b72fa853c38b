"""A figure, a table or an estimator is one new file: dropped into its folder it is found."""

from collections.abc import Callable
from pathlib import Path

import pytest

import reports.claims.estimators
import reports.figures
import reports.tables
from harness.cells import store
from reports.claims.files import read_claim
from reports.claims.judge import judge_one
from reports.claims.registry import all_estimators
from reports.data.load import load
from reports.data.report import Report
from reports.figures.registry import draw_all
from reports.page.report import report_main
from reports.tables.registry import all_grids, raw_tables

TABLE = """
import pandas as pd
from reports.tables.registry import Brief, Grid, Section

ENERGY = Section("energy", "Energy of runs", 45)

def csv(report):
    return {"dropped": pd.DataFrame({"cells": [len(report.runs)]})}

def grids(report, raw):
    view = raw["dropped"].rename(columns={"cells": "how many"})
    return [Grid(ENERGY, "Dropped table", "a note", view, brief=Brief("Dropped in brief"))]
"""
FIGURE = """
from matplotlib.figure import Figure
from reports.figures.registry import Drawn
from reports.tables.runs import MEMORY

def figures(report):
    return [Drawn(MEMORY, "dropped", "Dropped figure", "a caption", Figure, (), 9)]
"""
ESTIMATOR = """
from reports.claims.claim import answer

def dropped(claim, subject, optimizer, data):
    return answer(claim, subject, data, "refuted", f"{optimizer} was dropped.")

ESTIMATORS = (dropped,)
"""
CLAIM = """
id: dropped
title: Dropped
text: A claim of a test.
source: this test
estimator: dropped
subjects: {ours: gefen}
baseline: adamw
"""


@pytest.fixture
def dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One new file in each of the three folders."""
    for package, text in (
        (reports.tables, TABLE),
        (reports.figures, FIGURE),
        (reports.claims.estimators, ESTIMATOR),
    ):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"zz_{package.__name__.rpartition('.')[2]}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])


@pytest.mark.usefixtures("dropped")
def test_a_new_table_and_a_new_figure_stand_on_the_page(
    tmp_path: Path,
    write_study: Callable[..., Path],
    memory_cell: Callable[..., store.Record],
    loss_cell: Callable[..., store.Record],
) -> None:
    records = [memory_cell("adamw"), memory_cell("gefen"), loss_cell("adamw", 0)]
    study = write_study(tmp_path / "study", records)
    assert report_main([str(study), "-o", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    places = [page.index(f'<h2 id="{key}"') for key in ("memory", "speed", "energy", "loss")]
    assert places == sorted(places), "the new section stands by its place"
    assert places[2] < page.index("Dropped table") < places[3]
    assert places[0] < page.index("Dropped figure.") < places[1]
    assert (tmp_path / "out" / "dropped.csv").read_text() == "cells\n3\n"
    assert "<code>dropped.csv</code>" in page
    assert "## Dropped in brief" in (tmp_path / "out" / "summary.md").read_text()


@pytest.mark.usefixtures("dropped")
def test_a_new_estimator_judges_a_claim(
    tmp_path: Path, write_study: Callable[..., Path], loss_cell: Callable[..., store.Record]
) -> None:
    path = tmp_path / "dropped.yaml"
    path.write_text(CLAIM)
    claim = read_claim(path, all_estimators())
    data = load(write_study(tmp_path / "study", [loss_cell("gefen", 0)]))
    assert judge_one(claim, "ours", data).sentence == "gefen was dropped."


def test_sections_and_file_names_do_not_collide(full_study: Path) -> None:
    """Of two sections under one anchor, or figures or tables of one name, one would be lost."""
    report = Report(load(full_study))
    tables, drawings = raw_tables(report), draw_all(report)
    grids = all_grids(report, tables)
    found = {drawn.section for drawn in drawings} | {grid.section for grid in grids}
    assert len({section.key for section in found}) == len(found)
    assert len({section.place for section in found}) == len(found)
    names = [drawn.name for drawn in drawings]
    assert len(set(names)) == len(names)
