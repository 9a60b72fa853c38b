"""The process that runs a cell: its command line and its environment."""

import os
import sys
from pathlib import Path

from harness.cells.identity import Cell
from harness.cells.provenance import cpu_cores
from harness.config import RunConfig
from harness.meters.limits import EXACT
from harness.models.files import is_local


def command(cell: Cell, parent: int) -> list[str]:
    """The worker, or the agent that starts one for each rank and ends as the first failed does."""
    folder, count = str(cell.directory.resolve()), cell.config.launch.nproc
    if count == 1:
        return [sys.executable, "-m", "harness.worker.main", folder, str(parent)]
    return [sys.executable, "-m", "harness.worker.agent", folder, str(parent), str(count)]


def environment(cell: Cell) -> dict[str, str]:
    """This process's own, with what makes a cell repeatable and keeps it off the network."""
    config, values = cell.config, dict(os.environ)
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
    # The worker must find this very code, also when started from another folder.
    here = str(Path(__file__).resolve().parents[2])
    values["PYTHONPATH"] = os.pathsep.join(
        path for path in (here, values.get("PYTHONPATH")) if path
    )
    return values


def _names_hub(config: RunConfig) -> bool:
    """Whether model, data or tokenizer are a hub id, so that a network may be used."""
    named = [config.model.path, config.data.path, config.data.tokenizer]
    return not all(name in (None, "bpe", "bytes") or is_local(str(name)) for name in named)
