"""Memory: bytes of optimizer state, and the peak of each phase of a run.

On CUDA the peak is the allocator's (`max_memory_allocated`, reset at the start of a phase). On
CPU it is the kernel's high-water mark of resident memory, reset through `/proc/self/clear_refs`
(value 5, see proc_pid_clear_refs(5)) and given as the increment over the process when the meter
was made, that is, after its imports.

A meter with a cap also judges: a phase whose peak lies above it ends in `MemoryCapExceeded`.
"""

import ctypes
import gc
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from harness.meters.limits import MAPPED_FROM, MemoryCapExceeded, data_bytes, status_bytes
from harness.meters.storages import (
    optimizer_held_bytes,
    optimizer_state_bytes,
    serialized_bytes,
    tensors_bytes,
)
from harness.meters.timing import synchronize

__all__ = [
    "MemoryMeter",
    "optimizer_held_bytes",
    "optimizer_state_bytes",
    "serialized_bytes",
    "tensors_bytes",
]

VMHWM = "vmhwm"
VMHWM_EXACT = "vmhwm, freed blocks given back"
MAXRSS = "ru_maxrss (maximum of the whole process: phases are not separated)"
CUDA = "cuda_allocated"


def _reset_high_water_mark() -> None:
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")


def _maximum_resident_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _load_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim, or None under another C library."""
    if os.name != "posix":
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim if callable(trim) else None


class MemoryMeter:
    """Peak memory by phase.

        meter = MemoryMeter("cpu")
        with meter.phase("forward_backward"):
            ...
        meter.peaks["forward_backward"]  # bytes over meter.baseline_bytes

    `peaks` and, on CUDA, `reserved` are in bytes; a phase entered again keeps its larger peak.
    `method` says how peaks were obtained, `seconds` how long the meter itself worked. A phase that
    raises (out of memory) still leaves its peak. Phases do not nest. `on_phase` is told the name
    of each phase that begins.
    """

    def __init__(
        self,
        device: str | torch.device,
        cap_bytes: int | None = None,
        on_phase: Callable[[str], None] | None = None,
    ) -> None:
        self.device, self.cap_bytes = torch.device(device), cap_bytes
        self.peaks: dict[str, int] = {}
        self.reserved: dict[str, int] = {}
        self.seconds = 0.0
        self.baseline_data_bytes: int | None = None
        self._on_phase = on_phase
        self._active: str | None = None
        self._trim: Callable[[int], int] | None = None
        if self.device.type == "cuda":
            self.method, self.baseline_bytes = CUDA, 0
            return
        self._trim = _load_trim()
        self._release_free_memory()
        self.baseline_data_bytes = data_bytes()
        try:
            _reset_high_water_mark()
            self.baseline_bytes = status_bytes("VmRSS")
            status_bytes("VmHWM")
            self.method = VMHWM_EXACT if MAPPED_FROM in os.environ else VMHWM
        except OSError:
            self.baseline_bytes = _maximum_resident_bytes()
            self.method = MAXRSS

    def _release_free_memory(self) -> None:
        """Give back what earlier phases freed, so that it does not count in the next peak."""
        gc.collect()
        if self._trim is not None:
            self._trim(0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the peak of the body.

        RuntimeError inside another phase; MemoryCapExceeded for a peak above the cap.
        """
        if self._active is not None:
            raise RuntimeError(f"memory phase {name!r} starts inside phase {self._active!r}")
        self._active = name
        self._begin(name)
        try:
            yield
        finally:
            self._active = None
            self._end(name)
        if self.cap_bytes is not None and self.peaks[name] > self.cap_bytes:
            raise MemoryCapExceeded(
                f"phase {name} held {self.peaks[name]} bytes; the cap is {self.cap_bytes}"
            )

    def _begin(self, name: str) -> None:
        started = time.perf_counter()
        if self._on_phase is not None:
            self._on_phase(name)
        if self.method == CUDA:
            synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._release_free_memory()
            if self.method != MAXRSS:
                _reset_high_water_mark()
        self.seconds += time.perf_counter() - started

    def _end(self, name: str) -> None:
        started = time.perf_counter()
        if self.method == CUDA:
            reserved = torch.cuda.max_memory_reserved(self.device)
            self.reserved[name] = max(reserved, self.reserved.get(name, 0))
        self.peaks[name] = max(self.high_water_bytes(), self.peaks.get(name, 0))
        self.seconds += time.perf_counter() - started

    def high_water_bytes(self) -> int:
        """The peak since the last phase began, over the baseline; also after that phase."""
        if self.method == CUDA:
            return torch.cuda.max_memory_allocated(self.device)
        total = _maximum_resident_bytes() if self.method == MAXRSS else status_bytes("VmHWM")
        return max(0, total - self.baseline_bytes)
