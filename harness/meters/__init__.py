"""Meters: bytes, seconds, joules and losses of a run, each usable alone.

A file here that has a function `run_meter(device)` is a meter of every training run, without being
named anywhere else. It returns an object with two methods:

    start()              count from here; the device's queued work is done
    metrics() -> dict    what was taken since `start`, for the record: names carry their units, a
                         number adds up over processes and ranks, None says that nothing is known
"""

from collections.abc import Sequence
from typing import Any, Protocol

from harness import registry


class RunMeter(Protocol):
    """A meter of a whole training run."""

    def start(self) -> None:
        """Count from here."""

    def metrics(self) -> dict[str, Any]:
        """What was taken since `start`."""


def run_meters(device: Any) -> list[RunMeter]:
    """One meter of each file of this folder that has `run_meter`, for a `torch.device`."""
    files = [registry.module("meters", name) for name in registry.names("meters")]
    files = [file for file in files if hasattr(file, "run_meter")]
    return [file.run_meter(device) for file in files]


def add_up(readings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of a run from those of its parts; None where one part does not know.

    Numbers are summed; of other values the last part's counts.
    """
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for reading in readings for key in reading):
        values: list[Any] = [reading.get(key) for reading in readings]
        numbers = all(isinstance(value, int | float) for value in values)
        found[key] = None if None in values else sum(values) if numbers else values[-1]
    return found
