"""Trackio as a mirror of the store: a dashboard on this machine, without an account.

The store is one SQLite file in `<study>/trackio`; `TRACKIO_DIR=<study>/trackio trackio show` opens
it. Measured on trackio 0.43: one `log` takes under 0.1 ms, since a thread writes.
"""

import contextlib
import importlib
import math
import os
import sys
from typing import Any

from harness.config import TrackerConfig
from harness.errors import UserError
from harness.trackers import RunInfo, Tracker, require

FOLDER = "trackio"
NO_REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL")


class Backend(Tracker):
    """One trackio run."""

    def __init__(self, config: TrackerConfig, run: RunInfo) -> None:
        super().__init__(config, run)
        self._run: Any = None
        self._step = 0

    def start(self) -> None:
        """Import trackio and open the run; RuntimeError where it already keeps another store."""
        folder = (self.info.directory / FOLDER).resolve()
        # Read when trackio is imported; these would send the run elsewhere.
        os.environ["TRACKIO_DIR"] = str(folder)
        for name in NO_REMOTE:
            os.environ.pop(name, None)
        trackio: Any = importlib.import_module("trackio")
        kept = importlib.import_module("trackio.utils").TRACKIO_DIR
        if kept != folder:
            raise RuntimeError(f"this process already writes to {kept}, not to {folder}")
        # A worker's standard output carries its progress lines.
        with contextlib.redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=self.config.project,
                name=f"{self.info.name} {self.info.id}",
                group=self.info.group,
                config=self.info.dashboard_config(),
                embed=False,
                # No sampling in the background, which would disturb timings.
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, values: dict[str, float]) -> None:
        """One point; `step`, a name that trackio keeps for itself, becomes its own step."""
        self._step = int(values.get("step", self._step))
        self._run.log({k: v for k, v in values.items() if k != "step"}, step=self._step)

    def summary(self, values: dict[str, Any]) -> None:
        """One last point of what is a number; trackio has no summary."""
        numbers = {k: v for k, v in values.items() if k != "step" and _is_number(v)}
        self._run.log(numbers, step=self._step)

    def finish(self, status: str) -> None:
        """Write what is queued, and the status as a text."""
        self._run.log({"status": status}, step=self._step)
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


def check(config: TrackerConfig) -> list[str]:
    """UserError for `mode=online` or an absent package."""
    if config.mode != "offline":
        raise UserError(
            f"tracker.mode={config.mode} is not for tracker=trackio, which keeps its store on this "
            "machine; allowed: offline."
        )
    require("trackio", "trackio", "tracker=trackio")
    return []


def _is_number(value: Any) -> bool:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and math.isfinite(value)
