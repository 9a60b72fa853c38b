"""Optimizers that break a promise on purpose: instruments that test this harness, not optimizers.

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
from harness.optimizers.groups import decay_groups

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import AdamW

    from harness.models import ParameterSpec

    Build = Callable[[nn.Module, OptimizerConfig], AdamW]

_SPARE = "spare"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_ADAMW_OPTIONS = adamw.ENTRY.options


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

    if not 0 < rate_share <= 1:
        raise ValueError(f"rate_share={rate_share} must be above 0 and at most 1")

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

    if not slowdown >= 1:
        raise ValueError(f"slowdown={slowdown} must be at least 1")

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


def _construct(
    kind: "type[AdamW]", model: "nn.Module", config: OptimizerConfig, fault: str | None = None
) -> "AdamW":
    """`kind` over the groups of AdamW's own entry; the option that sets the fault is taken out."""
    options = {key: value for key, value in config.options.items() if key != fault}
    return kind(
        decay_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        **options,
    )


def _build_bloat(model: "nn.Module", config: OptimizerConfig) -> "AdamW":
    return _construct(_bloated(), model, config)


def _build_hidden(model: "nn.Module", config: OptimizerConfig) -> "AdamW":
    return _construct(_hidden(), model, config)


def _step_bytes(config: OptimizerConfig, specs: "Sequence[ParameterSpec]", itemsize: int) -> int:
    """What `planted_hidden` says it holds: the float32 number of the step of each tensor."""
    return 4 * len(specs)


def _build_worse(model: "nn.Module", config: OptimizerConfig) -> "AdamW":
    return _construct(_worse(config.options.get("rate_share", 1.0)), model, config, "rate_share")


def _build_slow(model: "nn.Module", config: OptimizerConfig) -> "AdamW":
    return _construct(_slow(config.options.get("slowdown", 1.0)), model, config, "slowdown")


def _entry(name: str, summary: str, build: "Build", *options: str) -> OptimizerEntry:
    """An entry that makes AdamW's promises: the same closed form for the bytes of its state."""
    return OptimizerEntry(
        name=name,
        source="torch.optim.AdamW with a planted fault",
        summary=summary,
        needs=None,
        imports=("torch.optim",),
        options=_ADAMW_OPTIONS | set(options),
        build=build,
        state_bytes=adamw.ENTRY.state_bytes,
        flops=adamw.ENTRY.flops,
        instrument=True,
    )


ENTRIES = (
    _entry("planted_bloat", "Test instrument: twice the state that it states.", _build_bloat),
    _entry(
        "planted_worse",
        "Test instrument: steps shorter than its rate says.",
        _build_worse,
        "rate_share",
    ),
    _entry(
        "planted_slow",
        "Test instrument: a multiple of AdamW's time for each step.",
        _build_slow,
        "slowdown",
    ),
    replace(
        _entry("planted_hidden", "Test instrument: moments outside its state.", _build_hidden),
        state_bytes=_step_bytes,
    ),
)
