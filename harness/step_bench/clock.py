"""Seconds and memory of one step, and bytes per second of a copy, on CPU and CUDA devices."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from harness.meters.memory import MemoryMeter
from harness.meters.timing import summarize, synchronize

T = TypeVar("T")


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds of `work`, started on an idle device: CUDA events, or the wall clock on CPU."""
    synchronize(device)
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    synchronize(device)
    return float(begin.elapsed_time(end)) / 1000


def copy_bandwidth(device: torch.device, size: int, rounds: int = 20) -> float:
    """Bytes per second of copying a buffer of `size` bytes, read and written bytes both counted."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    seconds = [timed(device, lambda: target.copy_(source)) for _ in range(rounds)]
    return 2 * size / summarize(seconds)["median"]


def eviction(device: torch.device, size: int) -> Callable[[], Any]:
    """A call that writes a buffer of `size` bytes, so that caches below it forget all else."""
    return torch.empty(size, dtype=torch.uint8, device=device).zero_


def transient(device: torch.device, work: Callable[[], T]) -> tuple[T, int]:
    """What `work` returns, and its peak in bytes over what is held before or after, if more.

    CUDA: of the allocator. CPU: of resident memory, which the kernel counts to about half a MiB.
    """
    before = _held_bytes(device)
    meter = MemoryMeter(device)
    with meter.phase("work"):
        result = work()
    peak = meter.baseline_bytes + meter.peaks["work"]
    return result, max(0, peak - max(before, _held_bytes(device)))


def _held_bytes(device: torch.device) -> int:
    """Bytes allocated on a CUDA device; else bytes resident once freed memory is given back."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return int(torch.cuda.memory_allocated(device))
    return MemoryMeter(device).baseline_bytes
