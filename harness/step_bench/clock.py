"""Seconds of a step and bytes per second of a copy, on CPU and CUDA devices."""

import time
from collections.abc import Callable
from typing import Any

import torch

from harness.meters.timing import summarize, synchronize


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
