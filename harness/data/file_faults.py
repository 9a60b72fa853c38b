"""What is wrong with a data file that cannot be read: in one sentence, with the line."""

import json
from pathlib import Path


def fault(file: Path) -> str | None:
    """What a reader would stumble over, without a full stop; None where nothing is seen.

    Looks into json, jsonl, csv, txt and parquet files, by their suffix.
    """
    if not file.stat().st_size:
        return f"{file} is empty"
    if file.suffix == ".parquet":
        return _parquet_fault(file)
    if file.suffix == ".json":
        return _json_fault(file)
    return _line_fault(file) if file.suffix in (".jsonl", ".csv", ".txt") else None


def _parquet_fault(file: Path) -> str | None:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_metadata(file).num_rows
    except (OSError, pyarrow.ArrowException):
        return f"{file} is no parquet file, or cut off"
    return None if rows else f"{file} holds no rows"


def _json_fault(file: Path) -> str | None:
    """Of a file that is one JSON value, a list of rows; or a row a line as jsonl."""
    try:
        rows = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _line_fault(file)
        return f"line {error.lineno} of {file} is not JSON ({error.msg}, column {error.colno})"
    except UnicodeDecodeError as error:
        return f"{file} is not UTF-8 (byte {error.start})"
    if not isinstance(rows, list):
        return None
    faults = (_row_fault(row, f"row {number} of {file}") for number, row in enumerate(rows))
    return next((told for told in faults if told), None) if rows else f"{file} holds no rows"


def _line_fault(file: Path) -> str | None:
    """Of a file whose lines are rows."""
    blank = True
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            where = f"line {number} of {file}"
            blank = blank and not line.strip()
            try:
                if file.suffix not in (".json", ".jsonl"):
                    line.decode()
                elif line.strip() and (told := _row_fault(json.loads(line), where)):
                    return told
            except json.JSONDecodeError as error:
                return f"{where} is not JSON ({error.msg}, column {error.colno})"
            except UnicodeDecodeError as error:
                return f"{where} is not UTF-8 (byte {error.start})"
    return f"{file} holds nothing but blank lines" if blank else None


def _row_fault(value: object, where: str) -> str | None:
    if not isinstance(value, dict):
        return f"{where} is no JSON object with columns"
    text = json.dumps(value, ensure_ascii=False)
    half = next((sign for sign in text if "\ud800" <= sign <= "\udfff"), None)
    return f"{where} holds half of a surrogate pair (\\u{ord(half):04x})" if half else None
