"""Publishing packs what a report needs, and refuses what nobody could reproduce."""

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
    command = "gefen-bench study=small root=/home/me/runs seed=0,1"
    listed = [{"id": record.id, "label": "x"}]
    store.write_study(folder, {"name": "small", "command": command, "cells": listed})
    return folder


def test_records_and_curves_are_packed_and_nothing_else(tmp_path: Path) -> None:
    source = study_with(tmp_path)
    target = publish.publish(source, tmp_path / "results")
    names = sorted(path.name for path in target.rglob("*") if path.is_file())
    assert names == ["curves.parquet", "records.jsonl", "study.json"]
    study, records = store.load_study(target)
    ran, single = store.load_study(source)
    assert records == single
    assert study == {**ran, "command": "gefen-bench study=small seed=0,1"}
    assert store.read_curves(target, ["a" * 16])["value"].to_pylist() == [3.0]
    assert publish.publish(source, tmp_path / "results") == target


def test_a_published_study_can_be_published_elsewhere(tmp_path: Path) -> None:
    first = publish.publish(study_with(tmp_path), tmp_path / "results")
    second = publish.publish(first, tmp_path / "again")
    for name in ("study.json", "records.jsonl", "curves.parquet"):
        assert (second / name).read_bytes() == (first / name).read_bytes()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("gefen-bench study=a root=/tmp/x", "gefen-bench study=a"),
        ("gefen-bench 'root=/tmp/my runs' study=a", "gefen-bench study=a"),
        ("gefen-bench study=a", "gefen-bench study=a"),
        ("gefen-bench data.root=b study=a", "gefen-bench data.root=b study=a"),
    ],
)
def test_the_published_command_is_free_of_this_machine(command: str, expected: str) -> None:
    assert publish.without_root(command) == expected


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
