"""A Hugging Face dataset id, or local dataset files, through `datasets`.

Local parquet, json, csv and text files go through the same `load_dataset` as a hub id. With
`max_documents` the data is streamed: only that many rows of each split are fetched.
"""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from harness.config import DataConfig
from harness.data.documents import SPLITS, Document, Splits, split_documents
from harness.data.sources.text_files import file_signature
from harness.errors import UserError
from harness.models.hub_access import check_repository

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


def signature(config: DataConfig) -> object:
    """Files of a local dataset with sizes and times; the id alone for a dataset on the hub."""
    local = Path(config.path or "")
    if not local.exists():
        return config.path
    files = [local] if local.is_file() else sorted(f for f in local.rglob("*") if f.is_file())
    return file_signature(files)


def read(config: DataConfig) -> Splits:
    """The documents of each split; a dataset without validation and test is split by content.

    Raises:
        UserError: the dataset cannot be loaded or has no column `text_column`.
    """
    found = split_names(load(config))
    if "validation" not in found or "test" not in found:
        return split_documents(_documents(found["train"], config))
    return {split: _documents(found[split], config) for split in ("train", *SPLITS[1:])}


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
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise UserError(
            f"data.path={config.path!r} (subset {config.subset!r}) cannot be loaded: {reason}."
        ) from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _documents(rows: Iterable[dict[str, Any]], config: DataConfig) -> list[Document]:
    documents = []
    for index, row in enumerate(islice(rows, config.max_documents)):
        if config.text_column not in row:
            raise UserError(
                f"data.text_column={config.text_column!r} is not a column of {config.path!r}; "
                f"it has: {', '.join(row)}."
            )
        text = row[config.text_column]
        if isinstance(text, str) and text.strip():
            documents.append(Document(f"row {index}", text))
    if not documents:
        raise UserError(f"data.path={config.path!r} has no text in {config.text_column!r}.")
    return documents
