"""Hydra's launcher plug-ins, driven from a plan: `hydra/launcher=joblib` and its relatives.

Hydra itself would compose every job from the swept values. The cells of a study are planned and
named before any of them runs, so here a job is told the folder of its plan instead, as Hydra's own
`hydra.sweep.subdir`; all else (queue, resources, log folders) is the plug-in's.
"""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, RunMode, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig

from harness import child
from harness.config.groups import configs_dir
from harness.errors import UserError
from harness.launch import dispatch_job
from harness.launch.slurm import Queue

# What the target of a launcher starts with: the modules that it needs, and the extra that has them.
EXTRAS = {
    "hydra_plugins.hydra_joblib_launcher.": (
        ("joblib", "hydra_plugins.hydra_joblib_launcher"),
        "sweeps",
    ),
    "hydra_plugins.hydra_submitit_launcher.": (
        ("submitit", "hydra_plugins.hydra_submitit_launcher"),
        "sweeps",
    ),
    "harness.launch.ray_launcher.": (("ray",), "ray"),
}


def use_own_settings() -> None:
    """Let the files of configs/hydra/launcher stand for the plug-ins' settings of the same names.

    Hydra would merge both and warn, in every job, that it will not do so for ever.
    """
    Plugins.instance()  # the plug-ins store their settings when they are found
    store = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    for path in (configs_dir() / "hydra" / "launcher").glob("*.yaml"):
        store.pop(path.name, None)


class HydraEngine:
    """The launcher that the command line's own `hydra/launcher=...` arguments choose.

    Raises UserError where its packages are missing, and Hydra's errors for unknown names or keys.
    """

    def __init__(
        self, hydra: Hydra, arguments: Sequence[str], function: TaskFunction = dispatch_job.run
    ) -> None:
        self._hydra, self._arguments, self._function = hydra, list(arguments), function
        self._launcher = self._compose(Path.cwd()).hydra.launcher
        self._target = str(self._launcher._target_)
        choices = [text.partition("=")[2] for text in arguments if "hydra/launcher=" in text]
        self.name = f"hydra/launcher={choices[-1]}" if choices else "hydra.launcher"
        self._check_installed()
        _ = self.width  # a mistake in it is told before anything is prepared

    @property
    def is_basic(self) -> bool:
        """Whether it is Hydra's default, which runs one job after another."""
        return self._target.endswith(".BasicLauncher")

    @property
    def shares_machine(self) -> bool:
        """Whether the jobs run beside each other here, so that they must share out the devices."""
        return self._target.endswith((".JoblibLauncher", ".LocalLauncher"))

    @property
    def at_once(self) -> int | None:
        """How many jobs may be handed over together; None for any number.

        submitit's local executor has no queue: it starts whatever it gets.
        """
        if not self._target.endswith(".LocalLauncher"):
            return None
        processors = len(os.sched_getaffinity(0)) // (self._launcher.get("cpus_per_task") or 1)
        return max(1, len(dispatch_job.visible_devices()) or processors)

    @property
    def width(self) -> int | None:
        """How many jobs run at once, as far as the settings say."""
        if self._target.endswith(".JoblibLauncher"):
            jobs = self._whole("n_jobs")
            return jobs if jobs > 0 else max(1, len(os.sched_getaffinity(0)) + 1 + jobs)
        if self._target.endswith(".SlurmLauncher"):
            return self._whole("array_parallelism")
        return self.at_once

    def queue(self, folder: Path) -> Queue | None:
        """The queue in which the jobs of `folder` wait and go on by themselves, if there is one."""
        if not self._target.endswith(".SlurmLauncher"):
            return None
        files = Path(str(self._compose(folder).hydra.launcher.submitit_folder))
        named = next((n for n, part in enumerate(files.parts) if "%" in part), None)
        return Queue(Path(*files.parts[:named]))

    def _whole(self, key: str) -> int:
        value = self._launcher.get(key)
        if not isinstance(value, int) or value == 0:
            raise UserError(f"hydra.launcher.{key}={value} must be a whole number, and not 0.")
        return value

    def launch(self, folder: Path, names: Sequence[str]) -> None:
        """Run a job for each name, whose folder is `folder`/name; returns when all have ended.

        Raises what the plug-in or the first failed job raised.
        """
        os.environ.update(child.environment())  # for the engine's processes and theirs
        config = self._compose(folder)
        callbacks = Callbacks(config)
        context = HydraContext(config_loader=self._hydra.config_loader, callbacks=callbacks)
        if self._target.startswith("hydra_plugins."):
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=self._function, config=config
            )
        else:  # Hydra's registry takes classes of the package hydra_plugins alone
            launcher = instantiate(config.hydra.launcher)
            launcher.setup(hydra_context=context, task_function=self._function, config=config)
        overrides = [[f"hydra.sweep.subdir={_quoted(name)}"] for name in names]
        for answer in launcher.launch(overrides, initial_job_idx=0):
            if answer.status is JobStatus.FAILED:
                raise answer._return_value

    def _compose(self, folder: Path) -> DictConfig:
        return self._hydra.compose_config(
            config_name="config",
            overrides=[*self._arguments, f"hydra.sweep.dir={_quoted(str(folder))}"],
            run_mode=RunMode.MULTIRUN,
            from_shell=False,
        )

    def _check_installed(self) -> None:
        for start, (modules, extra) in EXTRAS.items():
            if self._target.startswith(start):
                if not all(_is_there(module) for module in modules):
                    raise UserError(
                        f"{self.name} needs packages that are not installed: "
                        f"pip install -e '.[{extra}]' -c constraints.txt"
                    )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def _quoted(text: str) -> str:
    """A value in Hydra's override grammar."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
