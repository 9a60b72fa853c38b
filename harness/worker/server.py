"""The warm server: loads once what every worker imports, then forks one worker for each cell.

The launcher (`harness.launch.process`) starts it and sends a request for each cell over a socket:
the folder, the environment and the working folder as JSON, and three descriptors: the worker's
stdout, its stderr, and a socket of the worker's own. On that the server answers with the worker's
process id and, once it has ended, with its exit code; when the launcher closes its end, the worker
is killed. The server ends with its launcher, and the workers with the server.

A worker is a fork of a process that has run no cell and has only imported: no CUDA, no thread pool
of OpenMP. It reads its memory as a process of its own does: fork leaves the pages of files (the
code of the libraries) out of the new process, so they are mapped again before anything is measured.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import mmap
import os
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from harness import child
from harness.worker import main as worker

LOADED = (
    *("accelerate", "torch._dynamo", "transformers.modeling_utils"),
    *("harness.train.loop", "harness.train.save_model", "harness.train.setup"),
)
REQUEST_BYTES = 1 << 20
LOOK_SECONDS = 1.0  # between looks at whether the launcher is still there
PRESENT = 63  # the bit of an entry of /proc/PID/pagemap
POPULATE_READ = 22  # of madvise(2), Linux 5.14
Ranges = list[tuple[int, int]]  # address and length in bytes


def main() -> None:
    """Serve the launcher `argv[2]` on the socket `argv[1]` until it closes it or is gone."""
    launcher = int(sys.argv[2])
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        for module in LOADED:
            _load(module)
        Server(requests).serve(launcher)
    os._exit(0)  # its workers have asked the kernel to end with it


def _load(module: str) -> None:
    """Import a module; one that fails to load fails again in the worker, which records it."""
    with contextlib.suppress(Exception):
        importlib.import_module(module)


class Server:
    """Forks workers and tells each one's launcher how it ended."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._workers: dict[int, socket.socket] = {}
        self._loaded, self._pages = 0, Ranges()
        self._ended, wakes = socket.socketpair()
        for end in (self._ended, wakes):
            end.setblocking(False)
        self._wakes = wakes
        signal.set_wakeup_fd(wakes.fileno())
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def serve(self, launcher: int) -> None:
        """Until the launcher closes the socket or is gone."""
        while os.getppid() == launcher:
            watched = [self._requests, self._ended, *self._workers.values()]
            ready = select.select(watched, [], [], LOOK_SECONDS)[0]
            for pid, answers in list(self._workers.items()):
                if answers in ready:  # the launcher says nothing on it: it was closed
                    _kill(pid)
            if self._ended in ready:
                self._ended.recv(4096)
                self._reap()
            if self._requests in ready:
                message, received, _, _ = socket.recv_fds(self._requests, REQUEST_BYTES, 3)
                if not message:
                    return
                self._fork(json.loads(message), received)

    def _fork(self, request: dict[str, Any], received: list[int]) -> None:
        out, log, number = received
        answers = socket.socket(fileno=number)
        self._load_for(Path(request["folder"]))
        if select.select([answers], [], [], 0)[0]:  # closed: given up while this was loading
            answers.close()
        else:
            server, pid = os.getpid(), os.fork()
            if pid == 0:
                answers.close()
                self._close()
                _work(request, out, log, server, self._pages)
            self._workers[pid] = answers
            self._answer(pid, pid)
        os.close(out)
        os.close(log)

    def _load_for(self, folder: Path) -> None:
        """Import what the cell's model is made of, so that the next cell of its kind has it."""
        with contextlib.suppress(Exception):
            from harness.train.setup import model_module

            _load(model_module(worker.read_job(folder)[1].model))
        if len(sys.modules) != self._loaded:
            self._loaded = len(sys.modules)
            gc.collect()
            gc.freeze()  # a worker's collections need not walk, and so copy, what was imported
            self._pages = resident_file_pages()

    def _close(self) -> None:
        """In a worker: let go of what belongs to the server."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in (self._requests, self._ended, self._wakes, *self._workers.values()):
            end.close()

    def _reap(self) -> None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid in self._workers:
                self._answer(pid, os.waitstatus_to_exitcode(status))
                self._workers.pop(pid).close()

    def _answer(self, pid: int, number: int) -> None:
        try:
            self._workers[pid].send(str(number).encode())
        except OSError:  # the launcher has given the cell up
            _kill(pid)


def _kill(pid: int) -> None:
    """End a worker that was not waited for yet, with what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        os.killpg(pid, signal.SIGKILL)


def _work(request: dict[str, Any], out: int, log: int, server: int, pages: Ranges) -> None:
    """Become the worker of a cell, and end as it does."""
    code = 1
    try:
        os.setsid()
        os.dup2(out, 1)
        os.dup2(log, 2)
        os.close(out)
        os.close(log)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        if not pages or _cuda_was_touched():  # then a process of its own, in this one's place
            arguments = child.command("harness.worker.main", request["folder"], str(server))
            os.execve(sys.executable, arguments, os.environ)
        map_pages(pages)
        code = worker.run(Path(request["folder"]), server)
    except BaseException:
        traceback.print_exc()
    finally:
        worker.end(code)


def _cuda_was_touched() -> bool:
    """Whether an import has used CUDA, which a forked process then cannot."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda._is_in_bad_fork())


def resident_file_pages() -> Ranges:
    """Pages of files that this process has mapped and touched; empty where the kernel hides it."""
    found = Ranges()
    with contextlib.suppress(OSError), open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for line in Path("/proc/self/maps").read_text().splitlines():
            bounds, rights, _, _, inode = line.split()[:5]
            if inode == "0" or not rights.startswith("r"):
                continue
            first, last = (int(bound, 16) // mmap.PAGESIZE for bound in bounds.split("-"))
            pagemap.seek(first * 8)
            entries = memoryview(pagemap.read((last - first) * 8)).cast("Q")
            start = None
            for page, entry in enumerate([*entries, 0], first):
                if entry >> PRESENT and start is None:
                    start = page
                elif not entry >> PRESENT and start is not None:
                    found.append((start * mmap.PAGESIZE, (page - start) * mmap.PAGESIZE))
                    start = None
    return found


def map_pages(pages: Ranges) -> None:
    """Map pages of files as the forking process had them."""
    libc = ctypes.CDLL(None, use_errno=True)
    for address, length in pages:
        if libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), POPULATE_READ):
            for page in range(address, address + length, mmap.PAGESIZE):
                ctypes.string_at(page, 1)


if __name__ == "__main__":
    main()
