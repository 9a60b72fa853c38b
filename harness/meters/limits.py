"""A cap on memory: what does not fit under it fails as it would on a smaller machine.

CUDA: the share of the device that this process may reserve, so that torch raises its own
OutOfMemoryError. CPU under Linux: RLIMIT_DATA, the private writable memory of the process
(getrlimit(2); VmData of /proc/self/status), set to its size after the imports plus the cap, so
that an allocation beyond it fails in the library that asks, and Python raises. Measured with
torch 2.13: a cap of 512 MiB lets tensors of 496 to 512 MiB in all be held, filled or not.

RLIMIT_DATA counts what is mapped, not what was touched: 8 MiB for each new thread's stack, and
memory freed inside the heap. Both make a run fail early by tens of MiB rather than late. What the
process had mapped but not touched after its imports (about 70 MiB) may be touched beyond the cap;
the check of `MemoryMeter` at the end of each phase catches that. Elsewhere than under Linux that
check is all there is.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# The size, in bytes, from which glibc gives each block a mapping of its own (mallopt(3)). Where it
# is not set, glibc raises it to up to 32 MiB as blocks are freed, and the heap keeps what it held.
MAPPED_FROM = "MALLOC_MMAP_THRESHOLD_"
EXACT = {MAPPED_FROM: str(2**16)}

_STATUS = Path("/proc/self/status")


class MemoryCapExceeded(MemoryError):
    """A phase needed more than the cap, though each of its allocations went through."""


def status_bytes(key: str) -> int:
    """`VmRSS`, `VmHWM` or `VmData` of this process in bytes; OSError where /proc lacks it."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {key}")


def data_bytes() -> int | None:
    """Private writable memory of this process, None where the kernel does not tell."""
    try:
        return status_bytes("VmData")
    except OSError:
        return None


def enforce(cap_bytes: int, device: "torch.device", baseline_data_bytes: int | None) -> None:
    """From now on refuse memory beyond `cap_bytes` over `baseline_data_bytes` (CPU)."""
    if device.type == "cuda":
        import torch

        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap_bytes / total), device)
    elif sys.platform == "linux" and baseline_data_bytes is not None:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = baseline_data_bytes + cap_bytes
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def lift() -> None:
    """Give the process its memory back (CPU), so that a failure can be written down."""
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
