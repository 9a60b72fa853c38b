"""The ranks of one cell: who reads which examples, and what they tell each other.

`launch.nproc` processes run one cell, started by torch's elastic agent (harness.worker.agent);
accelerate opens the process group (NCCL on GPUs, gloo on CPUs). The global batch is nproc x
micro_batch x grad_accumulation: forward pass i of a step draws nproc x micro_batch examples, as one
process with that micro-batch does, and rank r takes the r-th part of them.

One process is the case of one rank, in which nothing here communicates.
"""

import contextlib
import datetime
import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import accelerate
import torch
from accelerate.utils import InitProcessGroupKwargs

from harness.cells.provenance import devices_named
from harness.config import RunConfig
from harness.data import Batch
from harness.errors import UserError

if TYPE_CHECKING:
    from torch import nn

# The group's own limit on a collective: longer than an evaluation or a checkpoint of one rank.
COLLECTIVE_TIMEOUT_SECONDS = 600.0
# What each rank measures for itself; the record's own value is that of rank 0, but for energy.
EACH_RANK = (
    *("peak_bytes", "baseline_bytes", "parameter_bytes", "gradient_bytes"),
    *("optimizer_state_bytes", "optimizer_tables_bytes", "first_step_seconds"),
    *("step_median_seconds", "forward_backward_median_seconds", "train_seconds"),
    *("energy_joules", "kernel_build_seconds"),
)


@dataclass(frozen=True)
class Ranks:
    """This process among those of its cell: `index` of `count`, numbers added on `device`."""

    index: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    strategy: str | None = None

    @property
    def sharded(self) -> bool:
        """Whether parameters, gradients and state are cut over the ranks."""
        return self.count > 1 and self.strategy == "fsdp"

    def share(self, batch: Batch, size: int) -> tuple[Batch, bool]:
        """This rank's at most `size` examples of a batch of at most count x `size`.

        A rank for which none are left gets the first one, so that it can take part in the passes
        of the others, and False: it must not count.
        """
        if self.count == 1:
            return batch, True
        part = {name: rows[self.index * size :][:size] for name, rows in batch.items()}
        if all(len(rows) for rows in part.values()):
            return part, True
        return {name: rows[:1] for name, rows in batch.items()}, False

    def total(self, *values: float) -> list[float]:
        """The sums over all ranks, in float64 and equal on all of them; waits for the last rank."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(sums)
        return [float(value) for value in sums]

    def align(self) -> None:
        """Wait for the others, so that what is timed next does not wait for them."""
        self.total(0.0)

    def gather(self, value: Any) -> list[Any]:
        """The picklable `value` of every rank, in their order, on every rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, value)
        return found

    @contextlib.contextmanager
    def accumulating(self, module: "nn.Module", last: bool) -> Iterator[None]:
        """Of DDP's gradients only those of the last pass travel; FSDP's stay cut after each."""
        if self.count > 1 and not self.sharded and not last:
            with module.no_sync():  # type: ignore[operator]
                yield
        else:
            yield


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A plain tensor as it is; of a DTensor the whole, for which all ranks must ask."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """A plain tensor as it is; of a DTensor this rank's part, which shares its memory."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def accelerator_of(config: RunConfig) -> accelerate.Accelerator:
    """The device of this rank, and the process group where there are several.

    Raises UserError where there are fewer devices than ranks.
    """
    if config.device == "cuda":  # accelerate would take the CPU in its place
        check_devices(config.launch.nproc)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    group = []
    if config.launch.nproc > 1:
        seconds = min(COLLECTIVE_TIMEOUT_SECONDS, config.launch.timeout_seconds)
        group = [InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=seconds))]
    return accelerate.Accelerator(
        mixed_precision="bf16" if config.precision == "bf16_mixed" else "no",
        cpu=config.device == "cpu",
        kwargs_handlers=group,
    )


def check_devices(count: int) -> None:
    """UserError unless each of `count` ranks has a CUDA device of its own."""
    devices = torch.cuda.device_count()
    if not devices:
        raise UserError(
            f"device=cuda was asked for, but torch sees no CUDA device on {platform.node()}"
            f"{devices_named()}; give the job one, or use device=cpu."
        )
    if count > devices:
        raise UserError(
            f"launch.nproc={count} needs as many CUDA devices, but this process sees {devices}"
            f"{devices_named()}; "
            f"choose launch.nproc <= {devices}, or device=cpu."
        )


def ranks_of(config: RunConfig, accelerator: accelerate.Accelerator) -> Ranks:
    """The ranks of a cell whose process group is open. RuntimeError for another number of them."""
    count = config.launch.nproc
    if count == 1:
        return Ranks(device=accelerator.device)
    if accelerator.num_processes != count:
        raise RuntimeError(f"{accelerator.num_processes} processes run a cell for {count}")
    return Ranks(accelerator.process_index, count, accelerator.device, config.launch.strategy)


def pooled_rms(ranks: Ranks, own: float, elements: int) -> float:
    """Root mean square over all ranks, of each `own` and the elements that it stands for."""
    if ranks.count == 1:
        return own
    square, total = ranks.total(own * own * elements, elements)
    return math.sqrt(square / total)


def check_agreement(model: "nn.Module", ranks: Ranks) -> None:
    """RuntimeError where DDP's ranks no longer hold the same weights: their updates differed."""
    if ranks.count == 1 or ranks.sharded:
        return
    sums = ranks.gather([float(p.detach().double().sum()) for p in model.parameters()])
    if any(not _same(sums[0], other) for other in sums):
        raise RuntimeError("The ranks hold different weights: the optimizer's updates differed.")


def _same(left: list[float], right: list[float]) -> bool:
    return all(a == b or (a != a and b != b) for a, b in zip(left, right, strict=True))


def rank_metrics(ranks: Ranks, metrics: dict[str, Any]) -> dict[str, Any]:
    """What the ranks measured each for itself, as lists in their order; {} for one process.

    `rank_peak_bytes` and so on; `all_ranks_optimizer_state_bytes` is the sum. Under FSDP the state
    bytes of a parameter are those of all ranks together, which hold one state between them.
    `energy_joules` becomes the sum over the ranks, each of which has a card of its own; None where
    one has no counter.
    """
    if ranks.count == 1:
        return {}
    own = {key: metrics[key] for key in EACH_RANK if metrics.get(key) is not None}
    each = ranks.gather(own)
    keys = [key for key in EACH_RANK if all(key in values for values in each)]
    found: dict[str, Any] = {f"rank_{key}": [values[key] for values in each] for key in keys}
    state = sum(found["rank_optimizer_state_bytes"])
    found["all_ranks_optimizer_state_bytes"] = state
    if "energy_joules" in metrics:
        joules = found.get("rank_energy_joules")
        found["energy_joules"] = None if joules is None else sum(joules)
        found["energy_method"] = None if joules is None else metrics["energy_method"]
    if ranks.sharded:
        found["state_bytes_per_parameter"] = state / metrics["parameters"]
    return found
