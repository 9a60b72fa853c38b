"""Publishing copies what a report needs, and refuses what nobody could reproduce."""

from pathlib import Path

import pytest

from harness.cells import publish, store
from harness.errors import UserError


def study_with(tmp_path: Path, status: str = "done", dirty: bool | None = False) -> Path:
    """A study of one cell, as a run leaves it, with files that are not for publication."""
    folder = tmp_path / "runs" / "small"
    record = store.Record(
        id="a" * 16,
        study="small",
        part="main",
        label="x",
        status=status,
        provenance={"git_dirty": dirty},
        metrics={"parameters": 3},
    )
    cell = store.cell_dir(folder, record.id)
    store.write_record(cell, record)
    store.write_curve(cell, [(1, 2, 0.5, "eval/loss", 3.0)])
    (cell / "log.txt").write_text("noise")
    store.write_study(folder, {"name": "small", "cells": [{"id": record.id, "label": "x"}]})
    return folder


def test_records_and_curves_are_copied_and_nothing_else(tmp_path: Path) -> None:
    source = study_with(tmp_path)
    target = publish.publish(source, tmp_path / "results")
    names = sorted(path.name for path in target.rglob("*") if path.is_file())
    assert names == ["curve.parquet", "record.json", "study.json"]
    assert store.load_study(target) == store.load_study(source)
    assert store.read_curve(store.cell_dir(target, "a" * 16))["value"].tolist() == [3.0]
    assert publish.publish(source, tmp_path / "results") == target


@pytest.mark.parametrize("name", [store.MOMENTA_FILE, store.PLAN_FILE])
def test_what_reports_read_beside_the_records_goes_with_them(tmp_path: Path, name: str) -> None:
    source = study_with(tmp_path)
    (source / name).write_text("{}")
    target = publish.publish(source, tmp_path / "results")
    assert (target / name).read_text() == "{}"


@pytest.mark.parametrize(
    ("status", "dirty", "sentence"),
    [
        ("crashed", False, "is crashed; finish it first"),
        ("done", True, "differs from its commit"),
        ("done", None, "differs from its commit"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(
    tmp_path: Path, status: str, dirty: bool | None, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        publish.publish(study_with(tmp_path, status, dirty), tmp_path / "results")
    assert not (tmp_path / "results").exists()
