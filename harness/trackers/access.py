"""What a tracker needs before a run starts: a package, a key, a server that answers."""

import importlib
import importlib.util
import os
from collections.abc import Iterable
from dataclasses import astuple
from typing import Any

from harness.config import TrackerConfig
from harness.errors import UserError

KEY_HINT = "set WANDB_API_KEY (https://wandb.ai/authorize) or run `wandb login`"


def check(configs: Iterable[TrackerConfig]) -> None:
    """Refuse what cannot work, before anything is prepared or run.

    Only `mode=online` reaches for the network. Raises UserError with one sentence.
    """
    for config in {astuple(config): config for config in configs}.values():
        if config.name == "trackio":
            _check_trackio(config)
        elif config.name == "wandb" and config.mode == "online":
            problem = wandb_problem()
            if problem is not None:
                raise UserError(f"tracker.mode=online cannot reach Weights & Biases: {problem}.")


def require(package: str, extra: str, needed_by: str) -> None:
    """UserError with the command that installs `extra`, where `package` is absent."""
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{needed_by} needs the package {package.replace('_', '-')}; "
            f"pip install -e '.[{extra}]' -c constraints.txt installs it."
        )


def wandb_problem() -> str | None:
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


def _check_trackio(config: TrackerConfig) -> None:
    if config.mode != "offline":
        raise UserError(
            f"tracker.mode={config.mode} is not for tracker=trackio, which keeps its store on this "
            "machine; allowed: offline."
        )
    require("trackio", "trackio", "tracker=trackio")
