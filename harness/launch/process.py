"""The process that runs a cell: forked from a warm server, or started afresh.

A server (`harness.worker.server`) has loaded the libraries; it serves the cells whose environment
agrees in all that libraries read when they load. Cells over several ranks, and all cells where the
system is not Linux, get processes of their own. Either way no process runs two cells.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import lru_cache
from typing import IO

from harness import child
from harness.cells.code import project_root
from harness.cells.identity import Cell
from harness.cells.provenance import cpu_cores
from harness.config import RunConfig
from harness.meters.limits import EXACT
from harness.models.files import is_local

SERVER, WORKER, AGENT = "harness.worker.server", "harness.worker.main", "harness.worker.agent"
# Read by libraries where they are used, not when they load: forked workers get them as they are.
LATE = ("CUDA_VISIBLE_DEVICES", "PYTEST_CURRENT_TEST", "WANDB_", "TRACKIO_")
LOADING_SECONDS = 5.0  # to wait, after Ctrl-C, for a server that has not begun the cell
SERVERS = 2  # kept with nothing to do, each with about 300 MB
Environment = tuple[tuple[str, str], ...]


class Process:
    """A worker in a session of its own; `stdout` is a pipe, stderr goes to the log."""

    def __init__(self, stdout: IO[str]) -> None:
        self.stdout = stdout

    def wait(self, seconds: float) -> int:
        """The exit code, negative for a signal; TimeoutExpired (subprocess) after `seconds`."""
        raise NotImplementedError

    def kill(self) -> None:
        """End it and what it has started; returns when it is gone."""
        raise NotImplementedError


def start(cell: Cell, log: IO[str]) -> Process:
    """Start the worker of a cell."""
    environment = environment_of(cell)
    if sys.platform == "linux" and cell.config.launch.nproc == 1:
        # A server that has ended, or a system that refuses: once more, then without one.
        for _ in range(2):
            with contextlib.suppress(OSError):
                return Forked(cell, environment, log)
            _server.cache_clear()
    return Fresh(cell, environment, log)


class Fresh(Process):
    """A new Python, or torch's agent that starts one for each rank and ends as the first failed."""

    def __init__(self, cell: Cell, environment: dict[str, str], log: IO[str]) -> None:
        self._process = subprocess.Popen(
            command(cell, os.getpid()),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            # Ctrl-C in the terminal reaches this process alone, which then ends the worker.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        super().__init__(self._process.stdout)

    def wait(self, seconds: float) -> int:
        return self._process.wait(seconds)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Forked(Process):
    """A fork of a warm server, which says when it has begun and how it ended."""

    def __init__(self, cell: Cell, environment: dict[str, str], log: IO[str]) -> None:
        early = {k: v for k, v in environment.items() if not k.startswith(LATE)}
        # Held while the worker lives: the server ends when nobody holds it.
        self._server = _server(os.getpid(), _code_signature(), tuple(sorted(early.items())))
        self._server.start(log)
        request = {
            "folder": str(cell.directory.resolve()),
            "cwd": os.getcwd(),
            "environment": environment,
        }
        self._answers, answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        read, write = os.pipe()
        super().__init__(os.fdopen(read))
        try:
            with answers:
                descriptors = [write, log.fileno(), answers.fileno()]
                socket.send_fds(self._server.requests, [json.dumps(request).encode()], descriptors)
        except OSError:
            self._answers.close()
            self.stdout.close()
            raise
        finally:
            os.close(write)
        self._began = self._given_up = False

    def wait(self, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while True:
            self._answers.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                answer = self._answers.recv(64)
            except TimeoutError:
                raise subprocess.TimeoutExpired(SERVER, seconds) from None
            except ConnectionResetError:
                answer = b""
            if not answer:
                # Given up before it began, else ended with its server, or that could not load.
                return -signal.SIGKILL if self._given_up else self._server.exit_code()
            if self._began:
                return int(answer)
            self._began = True

    def kill(self) -> None:
        self._given_up = True
        with contextlib.suppress(OSError):
            self._answers.shutdown(socket.SHUT_WR)
        # A server that is still loading will not begin the cell.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(60.0 if self._began else LOADING_SECONDS)


class Server:
    """A warm server of this process; it ends when this object is dropped, or the process gone."""

    def __init__(self, environment: dict[str, str]) -> None:
        # torch then asks the driver for devices without starting CUDA, which no fork survives.
        self._environment = {**environment, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        self._process: subprocess.Popen[bytes] | None = None
        self.requests, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def start(self, log: IO[str]) -> None:
        """Start the process unless it runs; what it prints goes to the log of its first cell."""
        if self._process is None:
            with self._theirs as theirs:
                self._process = subprocess.Popen(
                    child.command(SERVER, str(theirs.fileno()), str(os.getpid())),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )

    def exit_code(self) -> int:
        """How the process ended, once it has closed its sockets."""
        assert self._process is not None
        return self._process.wait()

    def __del__(self) -> None:
        self.requests.close()


@lru_cache(maxsize=SERVERS)
def _server(owner: int, code: object, environment: Environment) -> Server:
    """The server of this process (not of the one that it was forked from) for an environment."""
    return Server(dict(environment))


def _code_signature() -> object:
    """Changes with the files of the code: a server has loaded what they held when it began."""
    root = project_root()
    files = (path for name in ("gefen", "harness") for path in sorted((root / name).rglob("*.py")))
    return tuple((facts.st_mtime_ns, facts.st_size) for facts in map(os.stat, files))


def command(cell: Cell, parent: int) -> list[str]:
    """The worker, or the agent that starts one for each rank and ends as the first failed does."""
    folder, count = str(cell.directory.resolve()), cell.config.launch.nproc
    if count == 1:
        return child.command(WORKER, folder, str(parent))
    return child.command(AGENT, folder, str(parent), str(count))


def environment_of(cell: Cell) -> dict[str, str]:
    """This process's own, with what makes a cell repeatable and keeps it off the network."""
    config, values = cell.config, child.environment()
    values["TOKENIZERS_PARALLELISM"] = "false"
    values["PYTHONUNBUFFERED"] = "1"
    # cuBLAS is deterministic only with a fixed workspace.
    values.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not _names_hub(config):
        values["HF_HUB_OFFLINE"] = "1"
    if config.task.exact_peaks:
        values |= EXACT
    if config.threads is not None:
        values["OMP_NUM_THREADS"] = str(config.threads)
    if config.launch.nproc > 1:
        # Else torch's agent would give each rank a single thread.
        values.setdefault("OMP_NUM_THREADS", str(max(1, cpu_cores() // config.launch.nproc)))
        if config.device == "cpu" and sys.platform == "linux":
            # All ranks are here: gloo need not find out what the machine's own name stands for.
            values.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return values


def _names_hub(config: RunConfig) -> bool:
    """Whether model, data or tokenizer are a hub id, so that a network may be used."""
    named = [config.model.path, config.data.path, config.data.tokenizer]
    return not all(name in (None, "bpe", "bytes") or is_local(str(name)) for name in named)
