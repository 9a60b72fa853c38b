"""Weights & Biases as a mirror of the store; offline unless the config asks for online.

Measured on wandb 0.31: importing takes 0.8 s, `init` another 0.8 s, one `log` about 0.9 ms.
"""

from typing import Any

from harness.config import TrackerConfig
from harness.trackers.access import import_wandb, wandb_problem
from harness.trackers.base import RunInfo

X_AXIS = "tokens"
METRIC_FAMILIES = ("train/*", "eval/*", "time/*", "throughput/*", "memory/*")
ANSWERS = ("done", "diverged", "oom")


class WandbTracker:
    """One W&B run. Raises what wandb raises; wrap it in `GuardedTracker`."""

    def __init__(self, config: TrackerConfig, run: RunInfo) -> None:
        self._config = config
        self._info = run
        self._run: Any = None

    def start(self) -> None:
        """Import wandb and open the run; RuntimeError when absent, or online without access."""
        wandb = import_wandb()
        if self._config.mode == "online":
            problem = wandb_problem()
            if problem is not None:
                raise RuntimeError(f"tracker.mode=online: {problem}")
        self._info.directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            mode=self._config.mode,
            dir=str(self._info.directory),
            project=self._config.project,
            entity=self._config.entity,
            id=self._info.id,
            name=self._info.name,
            group=self._info.group,
            job_type=self._info.job_type,
            tags=list(self._info.tags),
            config=self._info.dashboard_config(),
            settings=_settings(wandb),
        )
        self._run.define_metric(X_AXIS)
        for family in METRIC_FAMILIES:
            self._run.define_metric(family, step_metric=X_AXIS)

    def log(self, values: dict[str, float]) -> None:
        """One point; `values` holds tokens, step and train_seconds beside the metrics."""
        self._run.log(values)

    def summary(self, values: dict[str, Any]) -> None:
        """Merge into the run's summary."""
        self._run.summary.update(values)

    def finish(self, status: str) -> None:
        """Write the status into the summary and close; a failed cell closes as failed."""
        self._run.summary.update({"status": status})
        self._run.finish(exit_code=0 if status in ANSWERS else 1)


def _settings(wandb: Any) -> Any:
    """Quiet, and without the background sampling that would disturb timings."""
    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=60,
        save_code=False,
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
    )
