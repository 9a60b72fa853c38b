"""Rows of text: a Hugging Face dataset id, or local parquet, json, csv and text files."""

from collections.abc import Iterable
from typing import Any

from harness.config import DataConfig
from harness.data import dataset_rows
from harness.data.documents import SPLITS, Document, Splits, split_documents
from harness.errors import UserError

KIND = "texts"
READS = frozenset({"path", "subset", "text_column", "max_documents"})

check = dataset_rows.check
signature = dataset_rows.signature


def read(config: DataConfig) -> Splits:
    """The documents of each split; a dataset without validation and test is split by content.

    Raises:
        UserError: the dataset cannot be loaded or has no column `text_column`.
    """
    found = dataset_rows.split_names(dataset_rows.load(config))
    if "validation" not in found or "test" not in found:
        return split_documents(_documents(found["train"], config))
    return {split: _documents(found[split], config) for split in ("train", *SPLITS[1:])}


def _documents(rows: Iterable[dict[str, Any]], config: DataConfig) -> list[Document]:
    documents = []
    for index, row in enumerate(dataset_rows.guarded(rows, config)):
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
