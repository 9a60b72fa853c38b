"""The launcher behind `hydra/launcher=ray`: each job is a task of a Ray cluster.

The keys are those of hydra-ray-launcher (`ray.init`, `ray.remote`). That plug-in's last version,
1.2.2, asks for boto3 and so for an older python-dateutil than this project pins, for the sake of
starting clusters on AWS; what is used of it fits in here.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict


class RayLauncher(Launcher):
    """`init` are keyword arguments of `ray.init`, `remote` of `ray.remote`."""

    def __init__(self, ray: DictConfig) -> None:
        self._settings = ray

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """As Hydra asks of a launcher."""
        self._context, self._function, self._config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit all jobs and wait; Ray starts each where its resources are free."""
        import ray

        settings: Any = OmegaConf.to_container(self._settings, resolve=True)
        if not ray.is_initialized():
            ray.init(**settings.get("init", {}))
        # A lost task is told, not rerun behind the back of the sweep, which counts the losses.
        task = ray.remote(**{"max_retries": 0, **settings.get("remote", {})})(_run)
        state = Singleton.get_state()
        waiting = []
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = number
            waiting.append(task.remote(self._context, config, self._function, state))
        return list(ray.get(waiting))


def _run(
    context: HydraContext, config: DictConfig, function: TaskFunction, state: Any
) -> JobReturn:
    """On the worker's node."""
    setup_globals()
    Singleton.set_state(state)
    HydraConfig.instance().set_config(config)
    return run_job(
        hydra_context=context,
        task_function=function,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
