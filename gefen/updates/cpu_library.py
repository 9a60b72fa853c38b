"""The compiled kernels of the CPU: built once into the user's cache, loaded once a process."""

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("cpu_kernel.cpp")
# Square roots that need not set errno can be vectorised; nothing here reads that or traps.
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_TUNING = ("-march=native", "-mcpu=native", "")  # the first that the compiler knows
_BUILD_SECONDS = 300


class BuildError(RuntimeError):
    """The kernels could not be built or loaded; the message is one sentence."""


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, built if they are not in the cache; None where that fails.

    The first failure of a process warns once with its cause. The cache is the folder `gefen` in
    XDG_CACHE_HOME or ~/.cache, the compiler CXX or the first of c++, g++ and clang++. A build takes
    a few seconds.
    """
    try:
        return _load(_cached())
    except (BuildError, OSError, ValueError, subprocess.SubprocessError) as error:
        warnings.warn(
            f"Gefen runs its slower reference on the CPU, because its kernels could not be built: "
            f"{error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def seconds_to_build() -> float:
    """Build the kernels of the CPU, or find them built, and return the seconds that took.

    The first step of a `Gefen` on the CPU does the same; a benchmark does it before it times.
    """
    start = time.perf_counter()
    library()
    return time.perf_counter() - start


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    loaded.gefen_task_bytes.restype = ctypes.c_int64
    loaded.gefen_run.argtypes = [
        *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_int),
        *(ctypes.c_void_p, ctypes.c_int),
    ]
    loaded.gefen_run.restype = ctypes.c_int
    loaded.gefen_use_pool.argtypes = [ctypes.c_void_p]
    loaded.gefen_use_pool.restype = None
    loaded.gefen_use_pool(_parallel_region())
    return loaded


def _parallel_region() -> int | None:
    """The address of the OpenMP entry that torch's own threads are reached by, if there is one."""
    try:
        entry = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # another OpenMP or none; TypeError on Windows
        return None
    return ctypes.cast(entry, ctypes.c_void_p).value


def _cached() -> Path:
    compiler = _compiler()
    name = f"cpu_kernel-{_fingerprint(compiler)}.so"
    problem = "no folder to build in can be written to."
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not (_is_ours(folder) and os.access(folder, os.W_OK)):
                continue
            target = folder / name
            return target if target.exists() and _is_ours(target) else _build(compiler, target)
        except OSError as error:
            problem = str(error)
    raise BuildError(problem)


def _folders() -> Iterator[Path]:
    """Where kernels may lie: the user's cache, else a folder that nobody else can know."""
    cache = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # a user without a home
        yield Path(cache) / "gefen" if cache else Path.home() / ".cache" / "gefen"
    yield Path(tempfile.mkdtemp(prefix="gefen-"))


def _is_ours(path: Path) -> bool:
    """Whether a file or folder is this user's alone to change: what is loaded is also run."""
    if not hasattr(os, "getuid"):
        return True
    facts = path.stat()
    return facts.st_uid == os.getuid() and not facts.st_mode & 0o022


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX", ""))
    names = [command] if command else [["c++"], ["g++"], ["clang++"]]
    for words in names:
        if shutil.which(words[0]):
            return words
    raise BuildError(f"no C++ compiler was found ({' or '.join(words[0] for words in names)}).")


def _fingerprint(compiler: list[str]) -> str:
    """What a build depends on: the source, the compiler, the processor and the version of torch."""
    version = subprocess.run(
        [*compiler, "--version"], capture_output=True, timeout=60, check=True
    ).stdout
    parts = [SOURCE.read_bytes(), version, " ".join((*compiler, *_FLAGS)).encode()]
    parts += [torch.__version__.encode(), _processor().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> str:
    """Model and features of the processor, since the code is compiled for it alone."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _build(compiler: list[str], target: Path) -> Path:
    """Compile under a temporary name and rename: two processes may build at once."""
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=".so")
    os.close(handle)
    try:
        for tuning in _TUNING:
            command = [*compiler, *_FLAGS, "-pthread", *filter(None, [tuning])]
            result = subprocess.run(
                [*command, str(SOURCE), "-o", name],
                capture_output=True,
                text=True,
                timeout=_BUILD_SECONDS,
            )
            if result.returncode == 0:
                os.replace(name, target)
                return target
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise BuildError(f"{shlex.join(compiler)} failed: {last}")
    finally:
        Path(name).unlink(missing_ok=True)
