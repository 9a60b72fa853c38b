"""A user's own text: one file, or all UTF-8 files of a folder."""

from pathlib import Path

from harness.config import DataConfig
from harness.data import dataset_rows
from harness.data.documents import Document, Splits, split_documents
from harness.errors import UserError

KIND = "texts"
READS = frozenset({"path", "max_documents"})


def check(config: DataConfig) -> None:
    """`path` names a file, or a folder that holds one.

    Raises:
        UserError: `path` is missing or holds no file.
    """
    if not config.path:
        raise UserError("data.path is null; source text_files needs a file or a folder.")
    if not Path(config.path).exists():
        raise UserError(f"data.path={config.path!r} does not exist.")
    if not _files(config):
        raise UserError(f"data.path={config.path!r} holds no file.")


def signature(config: DataConfig) -> object:
    """Relative path, size and modification time of every file."""
    return dataset_rows.file_signature(_files(config))


def read(config: DataConfig) -> Splits:
    """The documents of each split; files that are not UTF-8 text are left out.

    Raises:
        UserError: no file holds text.
    """
    documents = []
    for file in _files(config):
        try:
            text = file.read_bytes().decode()
        except UnicodeDecodeError:
            continue
        if text.strip():
            documents.append(Document(file.name, text))
        if config.max_documents is not None and len(documents) >= config.max_documents:
            break
    if not documents:
        raise UserError(f"data.path={config.path!r} holds no UTF-8 text.")
    return split_documents(documents)


def _files(config: DataConfig) -> list[Path]:
    path = Path(config.path or "")
    if path.is_file():
        return [path]
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
    )
