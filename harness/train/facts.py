"""What is known of a cell while it runs: kept for the record of a run that does not finish.

The worker process holds one `Facts` from its first line on. An exception leaves its metrics in the
record; a process that is killed cannot write, so everything is told to the parent as it becomes
known (one line on stdout), and `harness.launch.launcher` puts it into the record. Imports no torch.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.meters.memory import MemoryMeter

Tell = Callable[[dict[str, Any]], None]


def process_age_seconds() -> float:
    """Seconds since this process was started, to the kernel's tick (10 ms); 0 where unknown.

    Linux alone: psutil's creation time is off by up to a second, that of the boot time.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22, starttime
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, AttributeError):
        return 0.0


class Laps:
    """Seconds of parts that follow each other without a gap."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap, or since this was made."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


class Facts:
    """Metrics known so far, the phase that runs, and the clock of the start-up.

    `collect`, once set, gives what a task knows in the middle of its work; it is asked when the
    task has failed. `rows` are those of the curve.
    """

    def __init__(self, tell: Tell) -> None:
        self.phase = "start"
        self.metrics: dict[str, Any] = {"startup_process_seconds": process_age_seconds()}
        self.loaded_from: dict[str, str] = {}  # files of the core and the optimizer
        self.laps = Laps()
        self.meter: MemoryMeter | None = None
        self.collect: Callable[[], tuple[dict[str, Any], list[Any]]] | None = None
        self._tell = tell

    def add(self, **metrics: Any) -> None:
        """Keep metrics and tell the parent."""
        self.metrics |= metrics
        self._tell({"phase": self.phase, "metrics": metrics})

    def enter(self, phase: str) -> None:
        """Say which part of the run begins, with the bytes and peaks known by then."""
        self.phase = phase
        self.tell_bytes()

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Name a part inside another one; after an exception its name stays."""
        outer, self.phase = self.phase, phase
        yield
        self.phase = outer

    def tell_bytes(self) -> None:
        """Tell the parent the highest memory so far, should the kernel end this process."""
        if self.meter is not None:
            peaks = {f"peak_{name}_bytes": peak for name, peak in self.meter.peaks.items()}
            held = max(self.meter.high_water_bytes(), *peaks.values(), 0)
            self._tell({"phase": self.phase, "bytes": held, "metrics": peaks})

    def failure(self, status: str) -> tuple[dict[str, Any], list[Any]]:
        """Metrics and curve rows for a run that ended with an exception.

        `failed_phase` is where. With status oom, `failure_bytes` are those held over the baseline
        when memory was refused: what was asked for comes on top, so it bounds the need from below.
        """
        metrics = dict(self.metrics)
        rows: list[Any] = []
        if self.collect is not None:
            with contextlib.suppress(Exception):  # the failure itself must be recorded
                collected, rows = self.collect()
                metrics |= collected
        if self.meter is not None:
            meter = self.meter
            metrics |= {f"peak_{name}_bytes": value for name, value in meter.peaks.items()}
            metrics |= {f"reserved_{name}_bytes": value for name, value in meter.reserved.items()}
            metrics |= {"memory_method": meter.method, "baseline_bytes": meter.baseline_bytes}
            if status == "oom":
                metrics["failure_bytes"] = meter.high_water_bytes()
        return metrics | {"failed_phase": self.phase}, rows
