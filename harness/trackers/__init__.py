"""Trackers mirror the store for dashboards: wandb, trackio, or none."""

from collections.abc import Callable

from harness.config import TrackerConfig
from harness.errors import UserError
from harness.trackers.access import check
from harness.trackers.base import GuardedTracker, NullTracker, RunInfo, Tracker
from harness.trackers.trackio_tracker import TrackioTracker
from harness.trackers.wandb_tracker import WandbTracker

__all__ = ["GuardedTracker", "NullTracker", "RunInfo", "Tracker", "check", "make_tracker"]

BACKENDS: dict[str, Callable[[TrackerConfig, RunInfo], Tracker]] = {
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}


def make_tracker(config: TrackerConfig, run: RunInfo) -> Tracker:
    """The tracker of one run, not yet started; `UserError` for an unknown name.

    Nothing is imported or opened before `start`, which belongs outside timed regions.
    """
    if config.name == "none":
        return NullTracker()
    backend = BACKENDS.get(config.name)
    if backend is None:
        allowed = ", ".join(["none", *BACKENDS])
        raise UserError(f"tracker.name is {config.name!r}; allowed are {allowed}.")
    return GuardedTracker(config.name, lambda: backend(config, run))
