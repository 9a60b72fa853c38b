"""Memory of one step beyond what it leaves behind, and of a whole benchmark beforehand."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

from harness.config import OptimizerConfig
from harness.meters.memory import MemoryMeter
from harness.models import ParameterSpec
from harness.optimizers import state_bytes
from harness.step_bench.shapes import elements

T = TypeVar("T")
FULL_STATE_BYTES = 8  # assumed for each element where no closed form exists
USABLE_SHARE = 0.9


def held_bytes(device: torch.device) -> int:
    """Bytes allocated on a CUDA device; else bytes resident once freed memory is given back."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return int(torch.cuda.memory_allocated(device))
    return MemoryMeter(device).baseline_bytes


def transient(device: torch.device, work: Callable[[], T]) -> tuple[T, int]:
    """What `work` returns, and its peak in bytes over what is held before or after, if more.

    CUDA: of the allocator. CPU: of resident memory, which the kernel counts to about half a MiB.
    """
    before = held_bytes(device)
    meter = MemoryMeter(device)
    with meter.phase("work"):
        result = work()
    peak = meter.baseline_bytes + meter.peaks["work"]
    return result, max(0, peak - max(before, held_bytes(device)))


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def needed_bytes(
    specs: Sequence[ParameterSpec],
    optimizers: Iterable[OptimizerConfig],
    element_bytes: int,
    buffers: int,
) -> int:
    """Bytes of one process: shared parameters and gradients, every state, temporaries, `buffers`.

    Temporaries are one copy of all parameters (foreach implementations hold that) and three of
    the largest tensor in float32 (random numbers while it is made, and loops).
    """
    count = elements(specs)
    largest = max(elements([spec]) for spec in specs)
    total = 3 * element_bytes * count + 3 * 4 * largest + buffers
    for config in optimizers:
        known = state_bytes(config, specs, element_bytes)
        total += FULL_STATE_BYTES * count if known is None else known
    return total
