"""What the parts of the GPU check share: results, time limit, text, cells, the archive."""

import io
import os
import sysconfig
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.cells import store
from harness.cells.provenance import project_root
from harness.config import RunConfig, from_dict, validate
from harness.config.groups import load_group

ARCHIVED_SUFFIXES = (".json", ".md", ".xml", ".log", ".txt", ".parquet")
PART_SECONDS = 450.0
TEXT_BYTES = 12_000_000
EXCLUDED_FOLDERS = ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3")


@dataclass
class PartResult:
    """What one part found: `ok`, facts for summary.json, and a page for summary.md."""

    part: str
    ok: bool
    facts: dict[str, Any] = field(default_factory=dict)
    markdown: str = ""

    def write(self, folder: Path) -> None:
        """Write summary.json and summary.md into `folder`."""
        store.write_json_atomic(
            folder / "summary.json", {"part": self.part, "ok": self.ok, **self.facts}
        )
        store.write_bytes_atomic(folder / "summary.md", self.markdown.encode())


class Deadline:
    """Seconds left of a part's time; every child process gets no more than that."""

    def __init__(self, seconds: float = PART_SECONDS) -> None:
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left, never below 1 so that it can be a timeout."""
        return max(1.0, self._end - time.monotonic())

    def allows(self, seconds: float) -> bool:
        """True when work of about `seconds` still fits."""
        return self._end - time.monotonic() > seconds


def child_environment() -> dict[str, str]:
    """Environment of a child process that finds this code and asks no network."""
    inherited = os.environ.get("PYTHONPATH")
    paths = [str(project_root()), *([inherited] if inherited else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


def standard_library_text(folder: Path, limit: int = TEXT_BYTES) -> Path:
    """Copy Python files of the standard library into `folder`, up to `limit` bytes in all.

    Every machine that runs the check has them; the data hash in the records tells which.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    folder.mkdir(parents=True, exist_ok=True)
    used = 0
    for parent, folders, names in os.walk(library):
        folders[:] = sorted(set(folders) - set(EXCLUDED_FOLDERS))
        for file in (Path(parent, name) for name in sorted(names) if name.endswith(".py")):
            size = file.stat().st_size
            if size and used + size <= limit:
                flat = "__".join(file.relative_to(library).parts)
                (folder / flat).write_bytes(file.read_bytes())
                used += size
    return folder


def text_data(path: Path) -> dict[str, Any]:
    """Data group: a prepared corpus or the text files under `path`, as bytes."""
    return {"name": "text", "source": "text_files", "path": str(path), "tokenizer": "bytes"}


def cell_config(
    study: str,
    optimizer: str,
    model: dict[str, Any],
    task: dict[str, Any],
    data: dict[str, Any],
    work: Path,
    **values: Any,
) -> RunConfig:
    """A validated configuration of one cell that writes under `work`, without a tracker."""
    config = from_dict(
        RunConfig,
        {
            "optimizer": load_group("optimizer", optimizer),
            "model": model,
            "task": task,
            "data": data,
            "tracker": {"name": "none"},
            "study": {"name": study},
            "root": str(work),
            "cache": str(work / "cache"),
            **values,
        },
    )
    validate(config)
    return config


def run_cells(
    configs: list[RunConfig],
    deadline: Deadline,
    say: Callable[[str], None],
    run: Callable[[RunConfig], store.Record],
) -> list[store.Record]:
    """Run cells one after the other while the time lasts; each gets what is left of it."""
    records: list[store.Record] = []
    longest = 0.0
    for number, config in enumerate(configs, 1):
        if not deadline.allows(1.2 * longest):
            say(f"  out of time: {len(configs) - number + 1} of {len(configs)} cells not run")
            break
        config.launch.timeout_seconds = deadline.remaining()
        start = time.monotonic()
        record = run(config)
        longest = max(longest, time.monotonic() - start)
        records.append(record)
        say(f"  {number}/{len(configs)} {record.label}: {record.status} {record.error or ''}")
    return records


def write_archive(path: Path, folders: list[Path]) -> None:
    """Pack summaries, logs and records of `folders` into one small archive, atomically."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for folder in folders:
            for file in sorted(folder.rglob("*")):
                inside = file.relative_to(folder)
                skipped = {"cache", "text"} & set(inside.parts)
                if file.is_file() and file.suffix in ARCHIVED_SUFFIXES and not skipped:
                    archive.add(file, arcname=f"{folder.name}/{inside}")
    store.write_bytes_atomic(path, buffer.getvalue())
