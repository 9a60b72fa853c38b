"""The store: what a run leaves on disk, and how it is read back. Needs no torch.

A running study is `<root>/<study>/study.json` and a folder for each cell,
`cells/<id>/{record.json, curve.parquet}`. A published one is packed: `records.jsonl`, one record a
line, sorted by id, and `curves.parquet`, which has a column `cell` more. `read_records` and
`read_curves` read either form, so nothing else needs to know which a folder has.
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

from harness.errors import UserError, writing

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SCHEMA_VERSION = 1
STATUSES = ("done", "diverged", "oom", "crashed", "timeout", "interrupted")
RESULT_STATUSES = ("done", "diverged", "oom")
RECORD_FILE = "record.json"
CURVE_FILE = "curve.parquet"
RECORDS_FILE = "records.jsonl"  # all records of a packed study
CURVES_FILE = "curves.parquet"  # and all its curves
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


class Stored(NamedTuple):
    """A record as a study's folder holds it.

    `place`: path of its file from that folder, with the line in a packed one
    (`records.jsonl#L12`). `disk_bytes`: what its cell takes; a packed one's share of both files.
    """

    record: Record
    place: str
    disk_bytes: int


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

    Raises UserError where the disk is full or the folder cannot be written, OSError for another
    reason; the old file then stays as it was, and no temporary one is left.
    """
    path = Path(path)
    with writing(path.parent, path.name, "choose another folder", need=len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        _replace(path, data)


def _replace(path: Path, data: bytes) -> None:
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
    write_bytes_atomic(path, _json_bytes(value, indent=1))


def _json_bytes(value: Any, **layout: Any) -> bytes:
    text = json.dumps(_plain(value), allow_nan=False, ensure_ascii=False, **layout) + "\n"
    # Half of a character, as an undecodable file name has, becomes JSON's own escape for it.
    return text.encode(errors="backslashreplace")


def read_json(path: Path) -> Any:
    """The content of a JSON file; `UserError` when it is absent or not JSON."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    return _parse_json(data, str(path))


def _parse_json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode())
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column" if error.lineno > 1 else "column"
        raise UserError(f"{where} is not readable JSON: {error.msg}, {at} {error.colno}.") from None
    except ValueError as error:
        raise UserError(f"{where} is not readable JSON ({error}).") from None


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
    return _read_parquet(Path(cell_dir) / CURVE_FILE).to_pandas()


def _read_parquet(path: Path) -> "pa.Table":
    import pyarrow.parquet as pq

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

    Cells without a record yet are left out; so are records of cells that the study no longer
    lists, which an earlier version of the code wrote.
    """
    study = read_study(study_dir)
    listed = [cell["id"] for cell in study.get("cells", [])]
    return study, [stored.record for stored in read_records(study_dir, listed)]


def read_records(
    study_dir: Path, ids: Iterable[str] | None = None, skip_broken: bool = False
) -> list[Stored]:
    """The records of a study's folder in either form: those of `ids` in that order, or all by id.

    Ids without a record are left out. Where a cell has a folder and a packed record, the folder's
    counts, which is newer. UserError names a file (and its line) that is broken or of another
    schema, unless `skip_broken` leaves those out.
    """
    study_dir = Path(study_dir)
    found = _packed_records(study_dir, skip_broken)
    if ids is None:
        folders = [path.parent for path in study_dir.glob(f"cells/*/{RECORD_FILE}")]
        ids = sorted({*found, *(folder.name for folder in folders)})
    else:
        ids = list(dict.fromkeys(ids))
        folders = [folder for folder in (cell_dir(study_dir, i) for i in ids) if has_record(folder)]
    for folder in folders:
        try:
            place = f"cells/{folder.name}/{RECORD_FILE}"
            found[folder.name] = Stored(read_record(folder), place, disk_bytes(folder))
        except UserError:
            found.pop(folder.name, None)
            if not skip_broken:
                raise
    return [found[cell_id] for cell_id in ids if cell_id in found]


def study_folders(root: Path) -> list[Path]:
    """The folders at or below `root` that hold records, in either form, by path."""
    packed = {path.parent for path in Path(root).rglob(RECORDS_FILE)}
    return sorted(packed | {path.parents[2] for path in root.rglob(f"cells/*/{RECORD_FILE}")})


def _packed_records(study_dir: Path, skip_broken: bool) -> dict[str, Stored]:
    path, curves = study_dir / RECORDS_FILE, study_dir / CURVES_FILE
    if not path.is_file():
        return {}
    lines = path.read_bytes().splitlines()
    size = sum(file.stat().st_size for file in (path, curves) if file.is_file())
    found: dict[str, Stored] = {}
    for number, line in enumerate(lines, start=1):
        where = f"{path} line {number}"
        try:
            record = Record.from_dict(_parse_json(line, where), where)
            if record.id in found:
                raise UserError(f"{where} holds cell {record.id} a second time.")
        except UserError:
            if not skip_broken:
                raise
            continue
        found[record.id] = Stored(record, f"{RECORDS_FILE}#L{number}", size // len(lines))
    return found


def disk_bytes(cell_dir: Path) -> int:
    """Bytes of the files directly in a cell's folder."""
    return sum(file.stat().st_size for file in Path(cell_dir).iterdir() if file.is_file())


def read_curves(study_dir: Path, ids: Iterable[str]) -> "pa.Table":
    """The curves of these cells one after another, in either form of a study's folder.

    Columns: cell, then those of `CurveRow`. A cell may have no rows. UserError names a file that
    is not Parquet with these columns.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = list(dict.fromkeys(ids))
    folders = {cell_id: cell_dir(study_dir, cell_id) for cell_id in wanted}
    single = [cell_id for cell_id, folder in folders.items() if has_record(folder)]
    tables = [_packed_curves(Path(study_dir), set(wanted) - set(single))]
    for cell_id in single:
        curve = _read_parquet(folders[cell_id] / CURVE_FILE)
        tables.append(curve.add_column(0, "cell", pa.array([cell_id] * len(curve), pa.string())))
    curves = pa.concat_tables(tables)
    position = pc.index_in(curves["cell"], value_set=pa.array(wanted, pa.string()))
    return curves.take(pc.sort_indices(position))  # stable: a cell's rows keep their order


def _packed_curves(study_dir: Path, ids: set[str]) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.compute as pc

    path = study_dir / CURVES_FILE
    if not path.is_file():
        return _curve_table(()).add_column(0, "cell", pa.array([], pa.string()))
    table = _read_parquet(path)
    columns = ["cell", *CurveRow._fields]
    if table.column_names != columns:
        raise UserError(
            f"{path} has the columns {', '.join(table.column_names)}; expected are "
            f"{', '.join(columns)}."
        )
    return table.filter(pc.is_in(table["cell"], value_set=pa.array(sorted(ids), pa.string())))


def write_packed(study_dir: Path, records: Iterable[Record], curves: "pa.Table") -> None:
    """Write a published study's records, by id, and its curves (of `read_curves`), atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ordered = sorted(records, key=lambda record: record.id)
    lines = [_json_bytes(record.to_dict(), separators=(",", ":")) for record in ordered]
    write_bytes_atomic(Path(study_dir) / RECORDS_FILE, b"".join(lines))
    if not len(curves):
        return  # nothing was trained
    sink = pa.BufferOutputStream()
    pq.write_table(curves, sink, compression="zstd", compression_level=9)
    write_bytes_atomic(Path(study_dir) / CURVES_FILE, sink.getvalue().to_pybytes())
