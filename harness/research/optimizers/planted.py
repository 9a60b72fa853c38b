"""Instruments that test this harness: AdamW with a planted fault, so that claims must fail.

Each is AdamW with one planted fault, so that a claim about it is known to be false and the whole
pipeline, from the worker to the verdict, must refute it. `entries()` does not list them, and their
configurations lie apart: `gefen-bench optimizer=planted/bloat`.

- `planted_bloat` holds twice the bytes that its closed form states;
- `planted_worse` takes shorter steps than its learning rate says, and so ends at a higher loss;
- `planted_slow` takes a multiple of AdamW's time for each step and computes the same;
- `planted_hidden` keeps its moments where `optimizer.state` does not show them and states, counts
  and saves the step's number alone.

With `rate_share` or `slowdown` 1.0 there is no fault left: a control, which must not be refuted.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.config import OptimizerConfig
from harness.optimizers import adamw
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import construct
from harness.optimizers.options import Option, number

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import AdamW, Optimizer

    from harness.models import ParameterSpec

_SPARE = "spare"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def _bloated() -> "type[AdamW]":
    """AdamW that keeps a copy of every tensor of its state, in storages of their own."""
    import torch

    class BloatedAdamW(torch.optim.AdamW):
        """AdamW with its state held twice."""

        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            for held in self.state.values():
                if _SPARE not in held:
                    # Below a key of its own, where loading a checkpoint still knows `step` from
                    # the moments and keeps it in float32.
                    held[_SPARE] = {name: tensor.clone() for name, tensor in held.items()}
            return loss

    return BloatedAdamW


def _worse(rate_share: float) -> "type[AdamW]":
    """AdamW whose steps are `rate_share` of its learning rate, which its groups do not show."""
    import torch

    class WorseAdamW(torch.optim.AdamW):
        """AdamW at a lower rate than it says."""

        def step(self, closure: Any = None) -> Any:
            stated = [group["lr"] for group in self.param_groups]
            for group in self.param_groups:
                group["lr"] *= rate_share
            try:
                return super().step(closure)
            finally:
                for group, rate in zip(self.param_groups, stated, strict=True):
                    group["lr"] = rate

    return WorseAdamW


def _slow(slowdown: float) -> "type[AdamW]":
    """AdamW that keeps its core busy until a step took `slowdown` times what the step itself took.

    On CPU that is the processor time of its thread: the wall time of a step on a busy machine
    counts waiting for a core too, and the fault shall be that of the optimizer, not of its host.
    """
    import torch

    from harness.meters.timing import synchronize

    class SlowAdamW(torch.optim.AdamW):
        """AdamW that takes its time."""

        def step(self, closure: Any = None) -> Any:
            device = self.param_groups[0]["params"][0].device
            clock = time.thread_time if device.type == "cpu" else time.perf_counter
            synchronize(device)
            start = clock()
            loss = super().step(closure)
            synchronize(device)
            # A busy wait: the shortest sleep is longer than a small model's step.
            end = start + slowdown * (clock() - start)
            while clock() < end:
                pass
            return loss

    return SlowAdamW


def _hidden() -> "type[AdamW]":
    """AdamW whose moments lie in an attribute of its own except while it steps."""
    import torch

    class HiddenAdamW(torch.optim.AdamW):
        """AdamW that shows no moments; a checkpoint holds none, so a resumed run starts anew."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.hidden: dict[torch.Tensor, dict[str, torch.Tensor]] = {}

        def step(self, closure: Any = None) -> Any:
            for parameter, shown in self.state.items():
                if parameter in self.hidden:
                    shown |= self.hidden[parameter]
                else:
                    shown.clear()  # loaded without moments: AdamW makes all of it again
            loss = super().step(closure)
            for parameter, shown in self.state.items():
                self.hidden[parameter] = {name: shown.pop(name) for name in _MOMENTS}
            return loss

    return HiddenAdamW


def _step_bytes(config: OptimizerConfig, specs: "Sequence[ParameterSpec]", itemsize: int) -> int:
    """What `planted_hidden` says it holds: the float32 number of the step of each tensor."""
    return 4 * len(specs)


def _entry(
    name: str,
    summary: str,
    faulty: "Callable[..., type[AdamW]]",
    fault: str | None = None,
    size: Option | None = None,
) -> OptimizerEntry:
    """An entry that makes AdamW's promises: the same closed form for the bytes of its state.

    `faulty` makes the class, from the option `fault` where that sets the size of the fault.
    """

    def build(kind: Any, model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
        options = dict(config.options)
        broken = faulty() if fault is None else faulty(options.pop(fault))
        return construct(broken, model, config, options)

    own = {} if fault is None or size is None else {fault: size}
    return replace(
        adamw.ENTRY,
        name=name,
        summary=f"Test instrument: {summary}.",
        options={**adamw.ENTRY.options, **own},
        build=build,
        step_transient_bytes=None,
        shards=False,
        instrument=True,
    )


_SHARE, _TIMES = number(1.0, above=0, most=1), number(1.0, least=1)
ENTRIES = (
    _entry("planted_bloat", "twice the state that it states", _bloated),
    _entry("planted_worse", "steps shorter than its rate says", _worse, "rate_share", _SHARE),
    _entry("planted_slow", "a multiple of AdamW's time for a step", _slow, "slowdown", _TIMES),
    replace(
        _entry("planted_hidden", "moments outside its state", _hidden), state_bytes=_step_bytes
    ),
)
