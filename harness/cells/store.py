"""The store: what a run leaves on disk, and how it is read back. Needs no torch.

Layout: `<root>/<study>/study.json` and `<root>/<study>/cells/<id>/{record.json, curve.parquet}`.
A file is written under a temporary name in its own folder, flushed to the disk, and renamed, so a
reader (and a process killed in the middle of a write) sees the old file or the new one.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SCHEMA_VERSION = 1
STATUSES = ("done", "diverged", "oom", "crashed", "timeout", "interrupted")
RESULT_STATUSES = ("done", "diverged", "oom")
RECORD_FILE = "record.json"
CURVE_FILE = "curve.parquet"
CHECKPOINT_FILE = "checkpoint.pt"  # of an unfinished cell
STUDY_FILE = "study.json"
MOMENTA_FILE = (
    "beta1.json"  # beside study.json, where harness.research.beta1 was told to write there
)
PLAN_FILE = "plan.json"  # beside study.json, from gefen-plan --check --save
STALE_TEMPORARY_SECONDS = 600.0


class CurveRow(NamedTuple):
    """One point of a curve: `value` of `key` at optimizer step `step`.

    `train_seconds` leaves out evaluation and logging.
    """

    step: int
    tokens: int
    train_seconds: float
    key: str
    value: float


@dataclass
class Record:
    """The facts of one cell. `metrics` is flat and its names carry their units."""

    id: str
    study: str
    part: str
    label: str
    status: str
    attempt: int = 1
    error: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def is_result(self) -> bool:
        """True when the cell need not run again: done, diverged and out of memory are answers."""
        return self.status in RESULT_STATUSES

    def to_dict(self) -> dict[str, Any]:
        """The record as plain containers, `schema_version` first."""
        values = asdict(self)
        return {"schema_version": values.pop("schema_version"), **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "record") -> "Record":
        """Build a record; `where` names the file in the sentence of a `UserError`."""
        _check_version(values, where)
        known = {item.name for item in fields(cls)}
        required = ("id", "study", "part", "label", "status")
        missing = [name for name in required if name not in values]
        unknown = sorted(set(values) - known)
        if missing or unknown:
            problem = f"lacks {missing[0]!r}" if missing else f"has the unknown key {unknown[0]!r}"
            raise UserError(f"{where} {problem}; a record has the keys {sorted(known)}.")
        if values["status"] not in STATUSES:
            raise UserError(
                f"{where} has status {values['status']!r}; allowed are {', '.join(STATUSES)}."
            )
        return cls(**values)


def _check_version(values: Any, where: str) -> None:
    if not isinstance(values, Mapping):
        raise UserError(f"{where} holds {type(values).__name__}, not a JSON object.")
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{where} has schema_version {version!r}; this version reads {SCHEMA_VERSION} only."
        )


def _plain(value: Any) -> Any:
    """JSON-ready copy: paths become strings, array scalars numbers, non-finite numbers null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist") and not isinstance(value, (str, bytes)):
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _remove_stale(path: Path) -> None:
    """Delete temporary files that a killed writer of `path` left behind long ago."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > STALE_TEMPORARY_SECONDS:
                leftover.unlink()


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that every reader sees the old content or the new one.

    Raises OSError when the folder cannot be written; the old file then stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as strict JSON (a non-finite number becomes null), atomically."""
    text = json.dumps(_plain(value), indent=1, allow_nan=False, ensure_ascii=False)
    write_bytes_atomic(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file; `UserError` when it is absent or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON ({error}).") from None


def write_record(cell_dir: Path, record: Record) -> None:
    """Write `record.json` of a cell, atomically."""
    write_json_atomic(Path(cell_dir) / RECORD_FILE, record.to_dict())


def has_record(cell_dir: Path) -> bool:
    """True when the cell left a record, whatever its status."""
    return (Path(cell_dir) / RECORD_FILE).is_file()


def read_record(cell_dir: Path) -> Record:
    """Read `record.json`; `UserError` names a file that is absent, broken or of another schema."""
    path = Path(cell_dir) / RECORD_FILE
    return Record.from_dict(read_json(path), str(path))


def write_curve(cell_dir: Path, rows: Iterable[Sequence[Any] | Mapping[str, Any]]) -> None:
    """Write `curve.parquet`; a row is a `CurveRow`, a 5-sequence, or a mapping of its keys."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    points = [CurveRow(**row) if isinstance(row, Mapping) else CurveRow(*row) for row in rows]
    sink = pa.BufferOutputStream()
    pq.write_table(_curve_table(points), sink)
    write_bytes_atomic(Path(cell_dir) / CURVE_FILE, sink.getvalue().to_pybytes())


def _curve_table(points: Sequence[CurveRow]) -> "pa.Table":
    import pyarrow as pa

    columns = list(zip(*points, strict=True)) if points else [()] * len(CurveRow._fields)
    kinds = (pa.int64(), pa.int64(), pa.float64(), pa.string(), pa.float64())
    arrays = [pa.array(column, type=kind) for column, kind in zip(columns, kinds, strict=True)]
    return pa.table(dict(zip(CurveRow._fields, arrays, strict=True)))


def read_curve(cell_dir: Path) -> "pd.DataFrame":
    """The curve with columns step, tokens, train_seconds, key, value; empty when there is none."""
    return read_curve_table(cell_dir).to_pandas()


def read_curve_table(cell_dir: Path) -> "pa.Table":
    """`read_curve` as an Arrow table: many are joined before one conversion to pandas."""
    import pyarrow.parquet as pq

    path = Path(cell_dir) / CURVE_FILE
    if not path.is_file():
        return _curve_table(())
    try:
        with pq.ParquetFile(path) as stored:  # half the time of pandas' reader for small files
            return stored.read()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable Parquet ({error}).") from None


def write_study(study_dir: Path, study: Mapping[str, Any]) -> None:
    """Write `study.json`, atomically; `schema_version` is added."""
    write_json_atomic(Path(study_dir) / STUDY_FILE, {"schema_version": SCHEMA_VERSION, **study})


def read_study(study_dir: Path) -> dict[str, Any]:
    """Read `study.json`; `UserError` names a file that is absent, broken or of another schema."""
    path = Path(study_dir) / STUDY_FILE
    values = read_json(path)
    _check_version(values, str(path))
    return dict(values)


def cell_dir(study_dir: Path, cell_id: str) -> Path:
    """The folder of one cell."""
    return Path(study_dir) / "cells" / cell_id


def load_study(study_dir: Path) -> tuple[dict[str, Any], list[Record]]:
    """The study and the records of the cells that it lists, in its order.

    Cells without a record yet are left out; so are folders of cells that the study no longer
    lists, which an earlier version of the code wrote.
    """
    study = read_study(study_dir)
    folders = [cell_dir(study_dir, cell["id"]) for cell in study.get("cells", [])]
    return study, [read_record(folder) for folder in folders if has_record(folder)]
