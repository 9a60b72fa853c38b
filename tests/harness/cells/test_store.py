"""Records survive a killed writer, keep their values, and are refused in one sentence otherwise."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.cells import store
from harness.errors import UserError

ROOT = Path(store.__file__).resolve().parents[2]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


def make_record(**changes: object) -> store.Record:
    values = {"id": "0123456789abcdef", "study": "s", "part": "p", "label": "a/b", "status": "done"}
    return store.Record(**{**values, **changes})  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(metrics=st.dictionaries(st.text(max_size=5), json_values), attempt=st.integers(1, 9))
def test_record_round_trip(
    metrics: dict, attempt: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cell")
    record = make_record(metrics=metrics, attempt=attempt, error="ü" if attempt > 4 else None)
    store.write_record(folder, record)
    assert store.read_record(folder) == record
    assert os.listdir(folder) == ["record.json"]


def test_values_become_strict_json(tmp_path: Path) -> None:
    metrics = {
        "nan": float("nan"),
        "list": [1.0, float("inf")],
        "scalar": np.float32(0.5),
        "array": np.arange(3),
        "path": Path("/a/b"),
    }
    store.write_record(tmp_path, make_record(metrics=metrics))

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = (tmp_path / "record.json").read_text()
    loaded = json.loads(text, parse_constant=refuse)["metrics"]
    expected = {"nan": None, "list": [1.0, None], "scalar": 0.5, "array": [0, 1, 2], "path": "/a/b"}
    assert loaded == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema_version": 1, "id": ', "not readable JSON"),
        ("[1]", "not a JSON object"),
        ("{}", "schema_version None"),
        ('{"schema_version": 2}', "schema_version 2"),
        ('{"schema_version": 1, "id": "x"}', "lacks 'study'"),
        (
            '{"schema_version": 1, "id": "x", "study": "s", "part": "p", "label": "l",'
            ' "status": "fine"}',
            "allowed are done, diverged",
        ),
        (
            '{"schema_version": 1, "id": "x", "study": "s", "part": "p", "label": "l",'
            ' "status": "done", "metric": 1}',
            "unknown key 'metric'",
        ),
    ],
)
def test_bad_record_is_one_sentence_with_the_file(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        store.read_record(tmp_path)
    message = str(caught.value)
    assert words in message
    assert str(path) in message
    assert "\n" not in message


def test_missing_and_other_version_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        store.read_study(tmp_path)
    store.write_json_atomic(tmp_path / "study.json", {"schema_version": 99})
    with pytest.raises(UserError, match=r"study\.json has schema_version 99"):
        store.read_study(tmp_path)


def test_binary_garbage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "curve.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"record\.json"):
        store.read_record(tmp_path)
    with pytest.raises(UserError, match=r"curve\.parquet"):
        store.read_curve(tmp_path)


def test_curve_round_trip_and_types(tmp_path: Path) -> None:
    rows = [
        store.CurveRow(1, 2**40, 0.1, "train/loss", 1 / 3),
        (2, 2**41, 0.2, "train/loss", float("nan")),
        {"step": 2, "tokens": 5, "train_seconds": 0.2, "key": "eval/loss", "value": 1.0},
    ]
    store.write_curve(tmp_path, rows)
    frame = store.read_curve(tmp_path)
    assert list(frame.columns) == ["step", "tokens", "train_seconds", "key", "value"]
    assert frame["tokens"].tolist() == [2**40, 2**41, 5]
    assert frame["value"][0] == 1 / 3
    assert np.isnan(frame["value"][1])
    assert [str(frame[c].dtype) for c in ("step", "tokens", "value")] == ["int64"] * 2 + ["float64"]
    with pytest.raises(TypeError):
        store.write_curve(tmp_path, [(1, 2)])


def test_empty_and_absent_curves_look_alike(tmp_path: Path) -> None:
    store.write_curve(tmp_path / "a", [])
    empty, absent = store.read_curve(tmp_path / "a"), store.read_curve(tmp_path / "b")
    assert len(empty) == len(absent) == 0
    assert list(empty.columns) == list(absent.columns)
    numeric = ["step", "tokens", "train_seconds", "value"]
    assert (empty[numeric].dtypes == absent[numeric].dtypes).all()


def test_load_study_keeps_order_and_skips_what_is_not_there(tmp_path: Path) -> None:
    ids = ["b", "a", "never-run"]
    store.write_study(tmp_path, {"name": "s", "cells": [{"id": i, "part": "p"} for i in ids]})
    for cell in ("a", "b", "no-longer-listed"):
        store.write_record(store.cell_dir(tmp_path, cell), make_record(id=cell))
    study, records = store.load_study(tmp_path)
    assert study["name"] == "s"
    assert study["schema_version"] == 1
    assert [record.id for record in records] == ["b", "a"]


def pack(folder: Path, single: Path, ids: list[str]) -> None:
    """Write the study `single`, whose cells have folders, to `folder` as a packed one."""
    records = [stored.record for stored in store.read_records(single)]
    store.write_packed(folder, records, store.read_curves(single, ids))


finite = st.floats(allow_nan=False, allow_infinity=False)
curves = st.lists(
    st.tuples(
        st.integers(0, 2**40), st.integers(0, 2**40), finite, st.text(max_size=3), st.floats()
    ),
    max_size=4,
)


@settings(max_examples=25, deadline=None)
@given(
    cells=st.lists(
        st.tuples(st.dictionaries(st.text(max_size=5), json_values), st.none() | curves),
        min_size=1,
        max_size=4,
    )
)
def test_a_packed_study_has_the_values_of_the_single_files(
    cells: list, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Compared with the single files' own text and tables: integers stay integers, NaN stays."""
    single, packed = tmp_path_factory.mktemp("single"), tmp_path_factory.mktemp("packed")
    ids = [f"c{len(cells) - number}" for number in range(len(cells))]  # descending
    for cell_id, (metrics, curve) in zip(ids, cells, strict=True):
        folder = store.cell_dir(single, cell_id)
        store.write_record(folder, make_record(id=cell_id, metrics=metrics, label="\u2028\x85"))
        if curve is not None:
            store.write_curve(folder, curve)
    pack(packed, single, sorted(ids))
    found = store.read_records(packed, ids)
    assert [stored.record.id for stored in found] == ids
    for stored in found:
        text = (store.cell_dir(single, stored.record.id) / "record.json").read_text()
        assert repr(stored.record.to_dict()) == repr(json.loads(text))
        line = int(stored.place.removeprefix("records.jsonl#L"))
        packed_line = (packed / "records.jsonl").read_bytes().split(b"\n")[line - 1]
        assert json.loads(packed_line) == json.loads(text)
    together = store.read_curves(packed, ids).to_pandas()
    apart = [store.read_curve(store.cell_dir(single, cell_id)) for cell_id in ids]
    lengths = [len(curve) for curve in apart]
    assert together["cell"].tolist() == np.repeat(ids, lengths).tolist()
    for column in ("step", "tokens", "key", "train_seconds", "value"):
        expected = [value for curve in apart for value in curve[column]]
        assert [repr(value) for value in together[column]] == [repr(value) for value in expected]


def test_a_cell_that_ran_again_beside_packed_records_counts(tmp_path: Path) -> None:
    for number, cell in enumerate("ba"):
        store.write_record(store.cell_dir(tmp_path / "s", cell), make_record(id=cell))
        store.write_curve(store.cell_dir(tmp_path / "s", cell), [(1, 1, 0.0, "x", number)])
    study = tmp_path / "packed"
    pack(study, tmp_path / "s", ["a", "b"])
    store.write_record(store.cell_dir(study, "b"), make_record(id="b", attempt=2))
    store.write_record(store.cell_dir(study, "c"), make_record(id="c"))
    found = store.read_records(study)
    assert [(stored.record.id, stored.record.attempt) for stored in found] == [
        ("a", 1),
        ("b", 2),
        ("c", 1),
    ]
    assert [stored.place for stored in found] == [
        "records.jsonl#L1",
        "cells/b/record.json",
        "cells/c/record.json",
    ]
    assert store.read_curves(study, ["c", "b", "a"]).to_pydict()["value"] == [1.0]  # a's alone
    assert store.read_records(study, ["absent", "c", "c"])[0].record.id == "c"
    assert store.study_folders(tmp_path) == [study, tmp_path / "s"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-20], "records.jsonl line 2 is not readable JSON"),
        (lambda data: data[:40] + b"\xff" + data[41:], "records.jsonl line 1 is not readable JSON"),
        (lambda data: data + data, "records.jsonl line 3 holds cell a a second time"),
        (lambda data: data + b"\n", "records.jsonl line 3 is not readable JSON"),
        (
            lambda data: data.replace(b'"schema_version":1', b'"schema_version":7'),
            "schema_version 7",
        ),
    ],
)
def test_a_broken_line_is_one_sentence(
    tmp_path: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    for cell in "ab":
        store.write_record(store.cell_dir(tmp_path / "s", cell), make_record(id=cell))
    pack(tmp_path, tmp_path / "s", [])
    path = tmp_path / "records.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as caught:
        store.read_records(tmp_path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    whole = [stored.record.id for stored in store.read_records(tmp_path, skip_broken=True)]
    assert set(whole) <= {"a", "b"}


def test_curves_that_are_none_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "curves.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"curves\.parquet is not readable Parquet"):
        store.read_curves(tmp_path, ["a"])
    pq.write_table(pa.table({"cell": ["a"], "loss": [1.0]}), tmp_path / "curves.parquet")
    with pytest.raises(UserError, match=r"has the columns cell, loss; expected are cell, step"):
        store.read_curves(tmp_path, ["a"])


def test_half_a_character_is_kept(tmp_path: Path) -> None:
    """As in the message of an error about a file whose name is not UTF-8."""
    record = make_record(error="no file caf\udce9")
    store.write_record(tmp_path, record)
    assert store.read_record(tmp_path) == record


def test_only_answers_count_as_results() -> None:
    answers = [s for s in store.STATUSES if make_record(status=s).is_result]
    assert answers == ["done", "diverged", "oom"]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    store.write_json_atomic(path, {"value": 1})

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="Input/output error"):
        store.write_json_atomic(path, {"value": 2})
    assert store.read_json(path) == {"value": 1}
    assert os.listdir(tmp_path) == ["a.json"]


WRITER = """
import sys
from pathlib import Path
from harness.cells import store
folder, n = Path(sys.argv[1]), 0
while True:
    n += 1
    values = {"n": n, "padding": [n] * 20000}
    store.write_record(folder, store.Record("x", "s", "p", "l", "done", attempt=n, metrics=values))
    if n == 2:
        print("ready", flush=True)
"""


def test_sigkill_during_writes_leaves_a_whole_record(tmp_path: Path) -> None:
    """Killed at many moments, a writer leaves the last finished record, complete."""
    for moment in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.013 * moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        record = store.read_record(tmp_path)
        assert record.metrics["padding"] == [record.attempt] * 20000
        assert record.attempt >= 2


def test_leftovers_of_killed_writers_are_cleaned_later(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".record.json.1.tmp", tmp_path / ".record.json.2.tmp"
    old.write_text("half")
    fresh.write_text("half")
    os.utime(old, (1, 1))
    store.write_record(tmp_path, make_record())
    assert not old.exists()
    assert fresh.exists()


def test_store_and_provenance_import_no_torch() -> None:
    code = (
        "import sys, harness.cells.store as s, harness.cells.provenance as p;"
        "from pathlib import Path;"
        "s.read_curve(Path('/nonexistent')); p.collect('c', 'cpu', 'd', p.code_hash());"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
