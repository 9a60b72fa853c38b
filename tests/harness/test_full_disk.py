"""A disk that is full or read-only: one sentence, no temporary file left, nothing old lost.

Imitated by the system's own errors, raised where the writing happens; where this process may mount
one, a small disk in memory shows the same.
"""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from harness import models
from harness.cells import store
from harness.config import ModelConfig, RunConfig, from_dict
from harness.config.groups import load_group
from harness.data.once import build_once
from harness.errors import UserError, writing
from harness.launch import launcher
from harness.study import study_file
from harness.train.save_model import save_model
from reports.data.load import ReportError
from reports.figures.registry import Drawn
from reports.page.output import replacing
from reports.page.page import saving

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
CLOSED = OSError(errno.EROFS, os.strerror(errno.EROFS))


def failing(error: OSError) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    options = ("-t", "tmpfs", "-o", "size=64k", "tmpfs")
    if (
        sys.platform != "linux"
        or subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode
    ):
        pytest.skip("this process may not mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FULL, "no space left on device (it needs 17 bytes, "),
        (
            OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
            "no space left on device (it needs 17 bytes, ",
        ),
        (CLOSED, "cannot be written to {folder}: read-only file system; choose another folder."),
        (OSError(errno.EACCES, "Permission denied"), "{folder}: permission denied; choose another"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_record_that_cannot_be_written(
    error: OSError, words: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    store.write_json_atomic(path, {"value": 1})
    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing(error))
        with pytest.raises(UserError) as caught:
            store.write_json_atomic(path, {"value": 12})
    message = str(caught.value)
    assert message.startswith(f"record.json cannot be written to {tmp_path}: ")
    assert words.format(folder=tmp_path) in message
    assert "\n" not in message
    assert store.read_json(path) == {"value": 1}
    assert os.listdir(tmp_path) == ["record.json"]


def test_other_errors_and_those_of_other_files_stay_what_they_are(tmp_path: Path) -> None:
    """A text that may not be read is no fault of the cache into which it was to go."""
    elsewhere = OSError(errno.EACCES, "Permission denied", "/other/text.txt")
    for error in (OSError(errno.EIO, "Input/output error"), elsewhere, OSError("odd")):
        with pytest.raises(type(error), match=error.args[-1]), writing(tmp_path, "It", "wait"):
            raise error
    with pytest.raises(UserError), writing(tmp_path / "a" / "b", "It", "wait"):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "a"))


def test_prepared_data_that_do_not_fit(tmp_path: Path, small_disk: Path) -> None:
    """numpy's error has no number; what was written of them goes."""

    def write(folder: Path) -> None:
        np.save(folder / "train.npy", np.zeros(100_000))

    with pytest.raises(UserError) as caught:
        build_once(small_disk / "data" / "0123", write)
    message = str(caught.value)
    assert message.startswith(f"The prepared data cannot be written to {small_disk / 'data'}: no")
    assert message.endswith(
        " bytes are free); make room there, or choose another folder with cache=."
    )
    assert [path.name for path in (small_disk / "data").iterdir()] == ["0123.lock"]


def test_a_study_on_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell: Any = SimpleNamespace(study_dir=tmp_path / "runs" / "study")
    monkeypatch.setattr(Path, "mkdir", failing(CLOSED))
    with pytest.raises(UserError, match=r"The study cannot .*; choose another folder with root=\."):
        study_file.write_study([cell], "gefen-bench")


def test_what_a_worker_prints_is_read_on_although_the_log_is_full() -> None:
    """Else it would wait for ever to have its next line taken."""

    class FullLog(io.StringIO):
        def write(self, text: str) -> int:
            raise FULL

    told: list[dict[str, Any]] = []
    lines = io.StringIO('noise\n@progress {"step": 1}\nmore\n@progress {"step": 2}\n')
    launcher._relay(lines, FullLog(), told.append, {})
    assert [values["step"] for values in told] == [1, 2]


def test_a_report_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("old")

    def write_half() -> None:
        with replacing(tmp_path, "It") as to:
            (to / "runs.csv").write_text("new")
            (to / "index.html").write_text("half of it")
            raise FULL

    with pytest.raises(ReportError, match="elsewhere with -o FOLDER"):
        write_half()
    assert os.listdir(tmp_path) == ["index.html"]
    assert (tmp_path / "index.html").read_text() == "old"
    with replacing(tmp_path, "It") as to:
        (to / "index.html").write_text("new")
    assert (tmp_path / "index.html").read_text() == "new"
    assert os.listdir(tmp_path) == ["index.html"]


@pytest.mark.parametrize("processes", [1, 2])
def test_figures_that_do_not_fit(
    processes: int, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn here or in forked processes, a figure's error reaches the one sentence."""

    def draw() -> Figure:
        figure = Figure()
        figure.subplots().plot(np.random.default_rng(0).random(20_000))
        return figure

    section: Any = None  # where the page has it; nothing here asks
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(processes))
    drawings = [Drawn(section, name, "title", "caption", draw, ()) for name in "ab"]
    with (
        pytest.raises(ReportError, match=r"^It cannot be written to .*no space left on device"),
        replacing(small_disk / "report", "It") as folder,
        saving(drawings, folder),
    ):
        pass
    assert list((small_disk / "report").iterdir()) == []


def test_a_trained_model_that_does_not_fit(small_disk: Path) -> None:
    """safetensors writes from Rust; the sentence names the bytes of the weights."""
    values = from_dict(ModelConfig, load_group("model", "gpt2_tiny"))
    setup: Any = SimpleNamespace(directory=small_disk, examples=None)
    setup.config = RunConfig(model=values)
    setup.model = models.build_model(values, 300, seed=3)
    weights = sum(parameter.numel() for parameter in setup.model.parameters())
    with pytest.raises(UserError) as caught:
        save_model(setup)
    assert str(caught.value).startswith(f"The trained model cannot be written to {small_disk}: no ")
    assert f"it needs {4 * weights:,} bytes" in str(caught.value)
    assert list(small_disk.iterdir()) == []
