"""On which device a cell runs: decided where it is planned, unless other machines run it."""

from typing import Protocol

from harness.config.types import RunConfig
from harness.errors import UserError


class Workers(Protocol):
    """What of an engine (`harness.launch.dispatch.Engine`) matters to the devices of its cells."""

    name: str

    @property
    def shares_machine(self) -> bool:
        """Whether the cells run on this machine."""


def check(config: RunConfig, workers: Workers | None) -> None:
    """UserError for a device that `workers` (None: none, this process runs the cells) cannot give.

    Cells of another machine need their device named: what is seen here says nothing about it. Jobs
    beside each other on this one get a device each.
    """
    if workers is None:
        return
    if not workers.shares_machine:
        if config.device == "auto":
            raise UserError(
                f"device=auto cannot be decided for {workers.name}, whose cells run on other "
                "machines; give device=cuda or device=cpu."
            )
    elif config.launch.nproc > 1 and resolved(config.device) == "cuda":
        raise UserError(
            f"launch.nproc={config.launch.nproc} on GPUs does not work with {workers.name}, which "
            "gives each cell one; run without a launcher, or use device=cpu."
        )


def resolved(name: str, here: bool = True) -> str:
    """`cpu` or `cuda`, for auto by what torch sees; UserError where cuda is not there.

    Not `here`, a worker finds out whether there is a device
    (`harness.train.distributed.ranks.check_devices`).
    """
    if name == "cpu" or not here:
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise UserError("device=cuda was asked for, but torch sees no CUDA device; use device=cpu.")
    return "cpu"
