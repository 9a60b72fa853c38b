"""Files that cannot be read: one sentence with the file, the line and what is wrong."""

import json
from pathlib import Path

import pandas as pd
import pytest

from harness.config import DataConfig
from harness.data import load
from harness.data.file_faults import fault
from harness.errors import UserError
from harness.models.files import check_length

ROWS = [json.dumps({"text": f"Row {n} has its own words: {n * 7}, {n * 11}."}) for n in range(30)]
HALF = '{"text": "half \\ud800 of a pair"}'


def written(folder: Path, name: str, lines: list[str] | bytes) -> Path:
    path = folder / name
    path.write_bytes(lines if isinstance(lines, bytes) else "\n".join(lines).encode())
    return path


FAULTS: list[tuple[str, list[str] | bytes, str]] = [
    ("a.jsonl", [*ROWS, '{"text": "cut of'], "line 31 of FILE is not JSON (Unterminated string"),
    ("a.jsonl", [*ROWS[:5], "no row", *ROWS], "line 6 of FILE is not JSON (Expecting value"),
    ("a.jsonl", [*ROWS, HALF], "line 31 of FILE holds half of a surrogate pair (\\ud800)"),
    ("a.jsonl", [*ROWS, "[1, 2]"], "line 31 of FILE is no JSON object with columns"),
    (
        "a.jsonl",
        "\n".join(ROWS).encode() + b'\n{"text": "caf\xe9"}',
        "line 31 of FILE is not UTF-8",
    ),
    ("a.jsonl", b"", "FILE is empty"),
    ("a.jsonl", b"\n \n", "FILE holds nothing but blank lines"),
    ("a.json", b'[{"text": "a"},\n {"text"', "line 2 of FILE is not JSON (Expecting ':'"),
    ("a.json", ["[" + ROWS[0] + ",", HALF + "]"], "row 1 of FILE holds half of a surrogate pair"),
    ("a.json", [*ROWS, '{"text"'], "line 31 of FILE is not JSON"),
    ("a.csv", b"", "FILE is empty"),
    ("a.txt", b"line\n\xff\xfe\n", "line 2 of FILE is not UTF-8 (byte 0)"),
    ("a.parquet", b"no parquet", "FILE is no parquet file, or cut off"),
]


@pytest.mark.parametrize(("name", "lines", "told"), FAULTS)
def test_a_fault_is_found_at_its_place(
    tmp_path: Path, name: str, lines: list[str] | bytes, told: str
) -> None:
    path = written(tmp_path, name, lines)
    found = fault(path)
    assert found is not None
    assert found.startswith(told.replace("FILE", str(path)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.bin"])
def test_a_sound_file_has_none(tmp_path: Path, name: str) -> None:
    assert fault(written(tmp_path, name, ["text"] if name == "a.csv" else ROWS)) is None
    listed = written(tmp_path, "b.json", ["[" + ",\n".join(ROWS) + "]"])
    assert fault(listed) is None


@pytest.mark.parametrize("limit", [None, 20])  # the second streams
@pytest.mark.parametrize(("name", "lines", "told"), [FAULTS[i] for i in (0, 2, 5, 12)])
def test_loading_such_a_file_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    lines: list[str] | bytes,
    told: str,
    limit: int | None,
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    path = written(tmp_path, name, lines)
    config = DataConfig(source="hub", path=str(path), tokenizer="bytes", max_documents=limit)
    with pytest.raises(UserError) as error:
        load(config, tmp_path / "cache")
    expected = f"data.path={str(path)!r} cannot be loaded: {told.replace('FILE', str(path))}"
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob("*/"))  # nothing half-built


@pytest.mark.parametrize("limit", [None, 20])
def test_a_parquet_file_without_rows_is_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    path = tmp_path / "none.parquet"
    pd.DataFrame({"text": pd.Series([], dtype=str)}).to_parquet(path)
    config = DataConfig(source="hub", path=str(path), tokenizer="bytes", max_documents=limit)
    with pytest.raises(UserError, match=r"none\.parquet holds no rows\.$"):
        load(config, tmp_path / "cache")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"a": 64', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "is no JSON object"),
    ],
)
def test_a_broken_config_of_a_model_is_one_sentence(
    tmp_path: Path, content: bytes, told: str
) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"model\.path='.*': .*config\.json {told}") as error:
        check_length(str(tmp_path), 32)
    assert "\n" not in str(error.value)
