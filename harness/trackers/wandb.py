"""Weights & Biases as a mirror of the store; offline unless the config asks for online.

Measured on wandb 0.31: importing takes 0.8 s, `init` another 0.8 s, one `log` about 0.9 ms.
"""

import importlib
import os
from typing import Any

from harness.config import TrackerConfig
from harness.errors import UserError
from harness.trackers import RunInfo, Tracker

X_AXIS = "tokens"
METRIC_FAMILIES = ("train/*", "eval/*", "time/*", "throughput/*", "memory/*")
ANSWERS = ("done", "diverged", "oom")
KEY_HINT = "set WANDB_API_KEY (https://wandb.ai/authorize) or run `wandb login`"


class Backend(Tracker):
    """One W&B run; none where the environment switches W&B off."""

    def __init__(self, config: TrackerConfig, run: RunInfo) -> None:
        super().__init__(config, run)
        self._run: Any = None

    def start(self) -> None:
        """Import wandb and open the run; RuntimeError when absent, or online without access."""
        if switched_off():
            return
        wandb = import_wandb()
        if self.config.mode == "online":
            problem = access_problem()
            if problem is not None:
                raise RuntimeError(f"tracker.mode=online: {problem}")
        self.info.directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            mode=self.config.mode,
            dir=str(self.info.directory),
            project=self.config.project,
            entity=self.config.entity,
            id=self.info.id,
            name=self.info.name,
            group=self.info.group,
            job_type=self.info.job_type,
            tags=list(self.info.tags),
            config=self.info.dashboard_config(),
            settings=_settings(wandb),
        )
        self._run.define_metric(X_AXIS)
        for family in METRIC_FAMILIES:
            self._run.define_metric(family, step_metric=X_AXIS)

    def log(self, values: dict[str, float]) -> None:
        """One point; `values` holds tokens, step and train_seconds beside the metrics."""
        if self._run:
            self._run.log(values)

    def summary(self, values: dict[str, Any]) -> None:
        """Merge into the run's summary."""
        if self._run:
            self._run.summary.update(values)

    def finish(self, status: str) -> None:
        """Write the status into the summary and close; a failed cell closes as failed."""
        if self._run:
            self._run.summary.update({"status": status})
            self._run.finish(exit_code=0 if status in ANSWERS else 1)


def check(config: TrackerConfig) -> list[str]:
    """What WANDB_MODE and WANDB_DISABLED change or do not change, in sentences.

    UserError for `mode=online` where W&B cannot be reached.
    """
    off = switched_off()
    if off:
        return [f"{off} switches W&B off: nothing is mirrored, records are complete."]
    mode = os.environ.get("WANDB_MODE", "")
    notes = []
    if mode and mode != config.mode:
        notes.append(f"tracker.mode={config.mode} goes before WANDB_MODE={mode}.")
    if config.mode == "online":
        problem = access_problem()
        if problem is not None:
            raise UserError(f"tracker.mode=online cannot reach Weights & Biases: {problem}.")
    return notes


def switched_off() -> str:
    """The setting of the environment that switches W&B off, as NAME=VALUE; "" for none."""
    if os.environ.get("WANDB_MODE", "").lower() == "disabled":
        return f"WANDB_MODE={os.environ['WANDB_MODE']}"
    value = os.environ.get("WANDB_DISABLED", "")
    return f"WANDB_DISABLED={value}" if value.lower() in ("1", "true", "yes", "on") else ""


def access_problem() -> str | None:
    """Why Weights & Biases cannot be reached with this machine's key; None where it can.

    Sends the key to its server to have it checked, where there is one.
    """
    wandb = import_wandb()
    try:
        found = wandb.login(prompt=False)
    except wandb.Error as error:
        return " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return None if found else f"there is no key; {KEY_HINT}"


def import_wandb() -> Any:
    """The package, without its crash reports; RuntimeError where it is absent."""
    # Read when wandb is imported: crash reports would otherwise leave the machine.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise RuntimeError("the package is absent; pip install wandb, or tracker=none") from None


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
