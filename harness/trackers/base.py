"""What a tracker is: a mirror of the store, which may fail without harm to the run."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)


@dataclass
class RunInfo:
    """How a run shows on a dashboard.

    `id` is `<cell id>-<attempt>`, so that a retry never merges into a failed run; `group` is the
    study, `job_type` one of tune, train, memory, step; `config` the resolved configuration;
    `directory` the study's folder, under which the backend keeps its files.
    """

    id: str
    name: str
    group: str
    job_type: str
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    directory: Path = Path(".")

    @property
    def cell_id(self) -> str:
        """The part of `id` before the attempt."""
        return self.id.rpartition("-")[0] or self.id

    @property
    def setting(self) -> str:
        """What repetitions share: study, part and label without its last piece, the seed.

        Dashboards average over it; two studies may differ in what a label does not name.
        """
        part = self.config.get("part", "main")
        return f"{self.group}: {part}/{self.name.rpartition('/')[0] or self.name}"

    def dashboard_config(self) -> dict[str, Any]:
        """The configuration that the run shows, with its cell and its setting."""
        return {**self.config, "cell": self.cell_id, "setting": self.setting}


class Tracker(Protocol):
    """The four calls a run makes, all outside timed regions."""

    def start(self) -> None:
        """Open the run."""

    def log(self, values: dict[str, float]) -> None:
        """One point: metric values together with tokens, step and train_seconds."""

    def summary(self, values: dict[str, Any]) -> None:
        """Values that describe the whole run."""

    def finish(self, status: str) -> None:
        """Close the run with the status of its record."""


class NullTracker:
    """Tracks nothing."""

    def start(self) -> None:
        """Nothing to open."""

    def log(self, values: dict[str, float]) -> None:
        """Nothing to log."""

    def summary(self, values: dict[str, Any]) -> None:
        """Nothing to summarise."""

    def finish(self, status: str) -> None:
        """Nothing to close."""


class GuardedTracker:
    """Passes calls on until the backend raises; then warns once and drops the backend.

    The store holds the truth, so losing its mirror never stops a run. `create` builds the backend
    in `start`, so that importing it is guarded as well.
    """

    def __init__(self, name: str, create: Callable[[], Tracker]) -> None:
        self.name = name
        self._create = create
        self._backend: Tracker = NullTracker()

    def start(self) -> None:
        """Build the backend and open its run."""
        try:
            self._backend = self._create()
            self._backend.start()
        except Exception as error:
            self._drop("start", error)

    def log(self, values: dict[str, float]) -> None:
        """One point, if the backend still answers."""
        try:
            self._backend.log(values)
        except Exception as error:
            self._drop("log", error)

    def summary(self, values: dict[str, Any]) -> None:
        """Summary values, if the backend still answers."""
        try:
            self._backend.summary(values)
        except Exception as error:
            self._drop("summary", error)

    def finish(self, status: str) -> None:
        """Close the run, if the backend still answers."""
        try:
            self._backend.finish(status)
        except Exception as error:
            self._drop("finish", error)

    def _drop(self, call: str, error: Exception) -> None:
        self._backend = NullTracker()
        reason = " ".join(str(error).split()) or type(error).__name__
        logger.warning(
            "tracker %s failed in %s and is off for this run, whose records are complete without "
            "it: %s",
            self.name,
            call,
            reason,
        )
