"""Rows of a Hugging Face dataset id, or of local dataset files, through `datasets`.

Local parquet, json, csv and text files go through the same `load_dataset` as a hub id. With
`max_documents` the data is streamed: only that many rows of each split are fetched.
"""

from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from harness.config import DataConfig
from harness.data.documents import SPLITS
from harness.data.file_faults import fault
from harness.errors import UserError
from harness.models.hub_access import check_repository

Row = dict[str, Any]
_BUILDERS = {
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".txt": "text",
}


def check(config: DataConfig) -> None:
    """`path` is a local dataset file or folder, or a hub id that can be reached.

    Raises:
        UserError: it is missing, of an unknown kind, offline, unreachable or not on the hub.
    """
    if not config.path:
        raise UserError("data.path is null; source hub needs a dataset id or a local folder.")
    local = Path(config.path)
    if not local.exists():
        check_repository(config.path, "dataset", "data.path")
    elif local.is_file() and local.suffix not in _BUILDERS:
        raise UserError(
            f"data.path={config.path!r} has an unknown suffix; allowed: {', '.join(_BUILDERS)}."
        )


def file_signature(files: list[Path]) -> list[tuple[str, int, int]]:
    """(path, bytes, modification time in ns) of each file."""
    stats = [(str(file.resolve()), file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def signature(config: DataConfig) -> object:
    """Files of a local dataset with sizes and times; the id alone for a dataset on the hub."""
    return file_signature(_local_files(config)) or config.path


def split_names(loaded: dict[str, Any]) -> dict[str, Any]:
    """The splits of a dataset under our names; without a train split the first one is that."""
    names = {"validation": ("validation", "valid", "val", "dev")}
    found = {
        split: next((loaded[n] for n in names.get(split, (split,)) if n in loaded), None)
        for split in SPLITS
    }
    train = next(iter(loaded.values())) if found["train"] is None else found["train"]
    others = {k: rows for k, rows in found.items() if rows is not None and rows is not train}
    return {"train": train, **others}


def load(config: DataConfig, builder: str | None = None) -> dict[str, Any]:
    """The splits of a hub id, local files or a saved dataset; `builder` reads `path` as a folder.

    Raises:
        UserError: it cannot be loaded.
    """
    import datasets

    local = Path(config.path or "")
    streaming = config.max_documents is not None
    try:
        if builder is not None:
            loaded = datasets.load_dataset(builder, data_dir=str(local), streaming=streaming)
        elif (local / "dataset_dict.json").exists() or (local / "state.json").exists():
            loaded = datasets.load_from_disk(str(local))
        elif local.is_file():
            loaded = datasets.load_dataset(
                _BUILDERS[local.suffix], data_files=str(local), streaming=streaming
            )
        else:
            loaded = datasets.load_dataset(config.path, config.subset, streaming=streaming)
    except Exception as error:
        raise _unreadable(config, error) from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def guarded(rows: Iterable[Row], config: DataConfig) -> Iterator[Row]:
    """The rows, at most `max_documents`; what reading them meets becomes a sentence.

    Streamed rows, and the images in them, are read here and not before.

    Raises:
        UserError: a row cannot be read; with the file and its line where those are known.
    """
    iterator = islice(rows, config.max_documents)
    for index in count():
        try:
            row = next(iterator, None)
        except Exception as error:
            raise _unreadable(config, error, index) from error
        if row is None:
            return
        yield row


def _unreadable(config: DataConfig, error: BaseException, row: int | None = None) -> UserError:
    """What is wrong with a local file, else what the library said first."""
    found = next((told for file in _local_files(config) if (told := fault(file))), None)
    if found is not None:
        return UserError(f"data.path={config.path!r} cannot be loaded: {found}.")
    cause = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__ or cause
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".")
    where = "" if row is None else f" at row {row}"
    return UserError(
        f"data.path={config.path!r} (subset {config.subset!r}) cannot be loaded{where}: {reason}."
    )


def _local_files(config: DataConfig) -> list[Path]:
    local = Path(config.path or "")
    if not config.path or not local.exists():
        return []
    return [local] if local.is_file() else sorted(f for f in local.rglob("*") if f.is_file())
