"""Trackers mirror a run to a dashboard: one file for each, found by `tracker.name` (see README.md).

The store holds the truth, so losing its mirror never stops a run.
"""

import hashlib
import importlib.util
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from harness import registry
from harness.config import TrackerConfig
from harness.errors import UserError

FOLDER = "trackers"
# Keys of a configuration in which repetitions differ, or which say where and how they ran; how many
# processes ran together stands in the label.
UNSHARED = ("seed", "model_seed", "data_seed", "root", "cache", "tracker", "study", "launch")
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
        """What repetitions share: study, part, label without its last piece, the seed, and a hash.

        Dashboards average over it. The hash is of the configuration without seeds and fold, for a
        label does not name everything that two runs may differ in (a width, betas, an option).
        """
        part = self.config.get("part", "main")
        shared = {key: value for key, value in self.config.items() if key not in UNSHARED}
        shared["data"] = {k: v for k, v in shared.get("data", {}).items() if k != "fold"}
        digest = hashlib.sha256(json.dumps(shared, sort_keys=True, default=str).encode())
        label = self.name.rpartition("/")[0] or self.name
        return f"{self.group}: {part}/{label} #{digest.hexdigest()[:6]}"

    def dashboard_config(self) -> dict[str, Any]:
        """The configuration that the run shows, with its cell and its setting."""
        return {**self.config, "cell": self.cell_id, "setting": self.setting}


class Tracker:
    """The four calls that a run makes, all outside timed regions; here they do nothing.

    A backend may raise whatever its library raises: `Guarded` keeps that from the run.
    """

    def __init__(self, config: TrackerConfig, run: RunInfo) -> None:
        self.config = config
        self.info = run

    def start(self) -> None:
        """Import what is needed and open the run."""

    def log(self, values: dict[str, float]) -> None:
        """One point: metric values together with tokens, step and train_seconds."""

    def summary(self, values: dict[str, Any]) -> None:
        """Values that describe the whole run."""

    def finish(self, status: str) -> None:
        """Close the run with the status of its record."""


class Guarded(Tracker):
    """Passes calls on until the backend raises; then warns once and drops the backend.

    `create` builds the backend in `start`, so that a failure of importing it is caught as well.
    """

    def __init__(self, name: str, create: Callable[[], Tracker]) -> None:
        self._name = name
        self._create = create
        self._backend: Tracker | None = None

    def start(self) -> None:
        """Build the backend and open its run."""

        def open_run() -> None:
            self._backend = self._create()
            self._backend.start()

        self._guard("start", open_run)

    def log(self, values: dict[str, float]) -> None:
        """One point, if the backend still answers."""
        if self._backend:
            self._guard("log", self._backend.log, values)

    def summary(self, values: dict[str, Any]) -> None:
        """Summary values, if the backend still answers."""
        if self._backend:
            self._guard("summary", self._backend.summary, values)

    def finish(self, status: str) -> None:
        """Close the run, if the backend still answers."""
        if self._backend:
            self._guard("finish", self._backend.finish, status)

    def _guard(self, name: str, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:
            self._backend = None
            logger.warning(
                "tracker %s failed in %s and is off for this run, whose records are complete "
                "without it: %s",
                self._name,
                name,
                " ".join(str(error).split()) or type(error).__name__,
            )


def names() -> tuple[str, ...]:
    """The allowed values of `tracker.name`."""
    return registry.names(FOLDER)


def make_tracker(config: TrackerConfig, run: RunInfo) -> Tracker:
    """The tracker of one run, not yet started; `UserError` for an unknown name.

    No library of a dashboard is imported before `start`, which belongs outside timed regions.
    """
    if config.name not in names():
        raise UserError(f"tracker.name={config.name} is not known; allowed: {', '.join(names())}.")
    backend = registry.module(FOLDER, config.name).Backend
    return Guarded(config.name, lambda: backend(config, run))


def check(configs: Iterable[TrackerConfig]) -> list[str]:
    """Refuse what cannot work, before anything is prepared or run.

    Returns sentences about what the environment changes or does not change. Only `mode=online`
    reaches for the network. Raises UserError with one sentence.
    """
    notes: list[str] = []
    for config in {astuple(config): config for config in configs}.values():
        checked = getattr(registry.module(FOLDER, config.name), "check", None)
        notes += checked(config) if checked else []
    return list(dict.fromkeys(notes))


def require(package: str, extra: str, needed_by: str) -> None:
    """UserError with the command that installs `extra`, where `package` is absent."""
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{needed_by} needs the package {package.replace('_', '-')}; "
            f"pip install -e '.[{extra}]' -c constraints.txt installs it."
        )
