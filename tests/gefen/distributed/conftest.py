"""Starts the worker scripts of this folder, one process a rank, and collects what they found."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
TIMEOUT_SECONDS = 240  # of a launch: it takes 15 s of processor time, on busy machines longer

Results = list[dict[str, Any]]
Launch = Callable[[str], Results]


def _environment() -> dict[str, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if "lo" in (name for _, name in socket.if_nameindex()):
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    return environment


def launch(script: str, folder: Path, ranks: int = 2) -> Results:
    """Run a script as `ranks` processes and return what each rank's `main` returned."""
    logs = [folder / f"rank{rank}.log" for rank in range(ranks)]
    processes = []
    for rank, log in enumerate(logs):
        command = [sys.executable, str(HERE / script), str(folder), str(rank), str(ranks)]
        with log.open("w") as output:
            processes.append(
                subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, env=_environment()
                )
            )
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        while any(process.poll() is None for process in processes):
            if time.monotonic() > deadline or any(process.poll() for process in processes):
                break  # a failed rank leaves the others waiting
            time.sleep(0.05)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    codes = [process.returncode for process in processes]
    if any(codes):
        tails = "\n".join(f"--- rank {r}\n{log.read_text()[-3000:]}" for r, log in enumerate(logs))
        pytest.fail(
            f"{script} ended with {codes} after at most {TIMEOUT_SECONDS} s\n{tails}", pytrace=False
        )
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(ranks)]


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Return a function from a script's name to the results of its two ranks, run only once."""
    return lru_cache(lambda script: launch(script, tmp_path_factory.mktemp("ranks")))
