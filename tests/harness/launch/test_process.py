"""Workers forked from a warm server: the same numbers and ends as of processes of their own."""

import contextlib
import faulthandler
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import errors
from harness.cells import store
from harness.cells.identity import Cell
from harness.config import RunConfig
from harness.launch import launcher, process
from harness.study.planner import plan
from harness.worker import main as worker
from harness.worker import server

MakeRun = Callable[..., RunConfig]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")


class Here:
    """In the place of a server of its own: `server.Server` in a fork of this process."""

    def __init__(self, work: Callable[..., None]) -> None:
        self.requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        launcher_id = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.requests.close()
                server._work = work
                server.Server._load_for = lambda *_: None  # type: ignore[method-assign]
                server.Server(theirs).serve(launcher_id)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        theirs.close()

    def start(self, log: Any) -> None:
        pass

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def work(request: dict[str, Any], out: int, log: int, parent: int, pages: Any) -> None:
    """In the place of training: does what the last word of the cell's label says."""
    worker.die_with_parent(parent)
    os.setsid()
    os.dup2(out, 1)
    os.write(out, b"begun\n")
    what = Path(request["folder"]).name
    if what == "sleep":
        time.sleep(60)
    if what == "fault":
        faulthandler.disable()  # pytest's
        os.kill(os.getpid(), signal.SIGSEGV)
    os._exit(7)


@pytest.fixture
def start(
    monkeypatch: pytest.MonkeyPatch, make_run: MakeRun, tmp_path: Path
) -> Iterator[Callable[[str], process.Process]]:
    """Starts a worker of `work`; all of a test are forked from one server."""
    here = Here(work)
    monkeypatch.setattr(process, "_server", lambda *key: here)
    (cell,) = plan([make_run()], progress=False)

    def begin(what: str) -> process.Process:
        with (tmp_path / "log").open("a") as log:
            found = process.Forked(replace(cell, id=what), dict(os.environ), log)
        found.server_id = here.pid  # type: ignore[attr-defined]
        return found

    yield begin
    here.requests.close()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(here.pid, 0)


def test_a_forked_worker_ends_as_a_process_does(start: Callable[..., process.Process]) -> None:
    """Beside each other: an exit code, a signal by its number, a kill that reaches one of them."""
    sleeping, plain, fault = start("sleep"), start("plain"), start("fault")
    assert [plain.wait(10), fault.wait(10)] == [7, -signal.SIGSEGV]
    with pytest.raises(subprocess.TimeoutExpired):
        sleeping.wait(0.1)
    assert sleeping.stdout.readline() == "begun\n"
    sleeping.kill()
    assert sleeping.stdout.read() == ""  # its end of the pipe is closed: it is gone
    assert plain.stdout.read() == "begun\n"


def test_workers_end_with_their_server(start: Callable[..., process.Process]) -> None:
    sleeping = start("sleep")
    assert sleeping.stdout.readline() == "begun\n"
    os.kill(sleeping.server_id, signal.SIGKILL)  # type: ignore[attr-defined]
    assert sleeping.wait(10) == -signal.SIGKILL
    assert sleeping.stdout.read() == ""


def mapped_bytes(file: Path) -> int:
    """What the kernel says is resident of this process's mapping of a file."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    assert any(line.endswith(str(file)) for line in lines)
    (resident,) = [line for line in islice(lines, 5) if line.startswith("Rss:")]
    return 1024 * int(resident.split()[1])


def test_file_pages_are_mapped_again_after_a_fork(tmp_path: Path) -> None:
    """Pages of a file that were touched before the fork come back, and no others."""
    pages = 512
    (tmp_path / "file").write_bytes(b"x" * pages * mmap.PAGESIZE)
    with (tmp_path / "file").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    mapped.madvise(mmap.MADV_RANDOM)  # no pages around the one that is touched
    assert all(mapped[page * mmap.PAGESIZE] for page in range(pages // 2))
    touched = server.resident_file_pages()
    read, write = os.pipe()
    if os.fork() == 0:
        bare = mapped_bytes(tmp_path / "file")
        server.map_pages(touched)
        os.write(write, f"{bare} {mapped_bytes(tmp_path / 'file')}".encode())
        os._exit(0)
    os.wait()
    bare, after = map(int, os.read(read, 100).split())
    assert bare == 0
    # A file system with large folios maps more than the pages that were touched.
    assert after == mapped_bytes(tmp_path / "file") >= pages // 2 * mmap.PAGESIZE
    mapped.close()


def test_cells_share_a_server_where_libraries_load_alike(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def refuse(*key: Any) -> Any:
        asked.append(key)
        raise ConnectionError

    refuse.cache_clear = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr(process, "_server", refuse)
    monkeypatch.setattr(process, "Fresh", lambda *arguments: "fresh")

    def key(**keys: Any) -> Any:
        (cell,) = plan([make_run(**keys)], progress=False)
        assert process.start(cell, sys.stderr) == "fresh"  # for want of a server
        return asked[-1]

    base = key()
    assert key(seed=1, micro_batch=2) == base
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert key() == base
    differing = [key(threads=2), key(task={"exact_peaks": True})]
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert len({base, *differing, key()}) == 4
    asked.clear()
    (cell,) = plan([make_run(launch={"nproc": 2})], progress=False)
    assert (process.start(cell, sys.stderr), asked) == ("fresh", [])


def test_code_that_was_not_planned_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = ("harness/worker/main.py", "harness/errors.py", "gefen/never_loaded.py")
    worker.check_loaded(files)
    (tmp_path / "errors.py").touch()
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "errors.py"))
    with pytest.raises(errors.UserError, match=r"harness\.errors was loaded from .*/errors\.py"):
        worker.check_loaded(files)


def test_a_door_run_with_m_imports_nothing_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "gefen").mkdir()
    (tmp_path / "gefen" / "__init__.py").write_text("raise ImportError('of the current folder')")
    (tmp_path / "yaml.py").write_text("raise ImportError('of the current folder')")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [sys.executable, "-m", "harness.cli.bench", "optimizer=list"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "gefen" in ended.stdout


def run(cell: Cell, monkeypatch: pytest.MonkeyPatch, how: Any) -> tuple[store.Record, Any]:
    """The record, and losses by step, of a cell that ran in a process of the kind `how`."""
    with monkeypatch.context() as patch:
        start = lambda cell, log: how(cell, process.environment_of(cell), log)  # noqa: E731
        patch.setattr(process, "start", start)
        started = time.monotonic()
        record = launcher.launch(cell, "", lambda values: None)
        assert 0 < record.metrics["startup_seconds"] < time.monotonic() - started
    assert record.status == "done", record.error
    curve = store.read_curve(cell.directory).query("key in ('train/loss', 'eval/loss')")
    return record, list(zip(curve["step"], curve["value"], strict=True))


def test_a_forked_cell_computes_and_measures_what_a_fresh_process_does(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A folder with other code of these names decides nothing.
    for name in ("gefen/__init__.py", "datasets.py", "torch/__init__.py", "harness/__init__.py"):
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_text("raise ImportError('of the current folder')")
    monkeypatch.chdir(tmp_path / "here")

    def cell(where: str) -> Cell:
        return plan([make_run("gefen", root=str(tmp_path / where))], progress=False)[0]

    fresh, expected = run(cell("fresh"), monkeypatch, process.Fresh)
    run(cell("first"), monkeypatch, process.Forked)  # so that the server has loaded
    forked, losses = run(cell("forked"), monkeypatch, process.Forked)
    assert losses == expected
    for key in ("baseline_bytes", "peak_bytes"):
        assert forked.metrics[key] == pytest.approx(fresh.metrics[key], rel=0.05)
    assert forked.provenance["threads"] == fresh.provenance["threads"] == 1
    for record in (fresh, forked):
        files = record.provenance["loaded_from"]
        assert files == {"core": "harness/train/setup.py", "optimizer": "gefen/optimizer.py"}
    # The start-up is the cell's own, not the server's, which had imported before it.
    assert forked.metrics["startup_import_seconds"] < fresh.metrics["startup_import_seconds"] / 2


def test_a_cell_given_up_while_its_server_loads_does_not_wait_for_the_server() -> None:
    """The server closes the worker's socket then without a word, and lives on."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    forked = process.Forked.__new__(process.Forked)
    forked._answers, forked._began, forked._given_up = ours, False, False
    forked._server = SimpleNamespace(exit_code=lambda: pytest.fail("waited for the server"))  # type: ignore[assignment]

    def load() -> None:
        theirs.recv(1)  # until the launcher closes its end
        theirs.close()

    loading = threading.Thread(target=load)
    loading.start()
    forked.kill()
    loading.join(10)
    assert forked.wait(1) == -signal.SIGKILL
