"""The published Gefen packages, run as they are: gefen 1.2.3 and gefen-x 0.5.0.

Benedek, Koren and Fried, "Gefen: Optimized Stochastic Optimizer", arXiv 2606.13894; gefen-x is a
fork of it by others. Both import as `gefen`, as our own library does, and are loaded beside it
(`harness.optimizers.wheels`). Their first step takes tens of seconds on a CPU.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.config import OptimizerConfig
from harness.optimizers.closed_forms import unknown_bytes
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import decay_groups, settings
from harness.optimizers.options import Option, flag, integer, text
from harness.optimizers.wheels import PACKAGES, Published, folder, load

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_FLAGS = (
    *("factored_v_2d", "stochastic_round", "deterministic"),
    *("force_1d_period_one", "force_2d_period_one"),
)
_OPTIONS: dict[str, dict[str, Option]] = {
    "gefen_upstream": {},
    "gefen_x": {**dict.fromkeys(_FLAGS, flag()), "codebook_refresh_every": integer(0)},
}


def _check(config: OptimizerConfig) -> None:
    folder(config.name, config.options["version"])


def _preload(config: OptimizerConfig) -> None:
    load(config.name, config.options["version"])


def _inside(package: Published, kind: "type[Optimizer]") -> "type[Optimizer]":
    """`kind` whose code finds its own package by name whenever it runs."""

    class Inside(kind):  # type: ignore[misc, valid-type]
        """The published class; its methods run while its modules are the active ones."""

        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            with package.active():
                return super().step() if closure is None else super().step(closure)

        def state_dict(self) -> dict[str, Any]:
            with package.active():
                state: dict[str, Any] = super().state_dict()
                return state

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            with package.active():
                super().load_state_dict(state_dict)

    return Inside


def _build(load: Any, model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    options = dict(config.options)
    package = load(config.name, options.pop("version"))
    on_gpu = all(p.is_cuda for p in model.parameters())
    fused = options.pop("fused")
    if fused and not on_gpu:
        raise ValueError("fused=true needs a CUDA device; its kernels do not run on a CPU")
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [
        {**group, "params": [(names[id(p)], p) for p in group["params"]]}
        for group in decay_groups(model, config.weight_decay)
    ]
    with package.active() as module:
        return _inside(package, module.Gefen)(  # type: ignore[call-arg]
            groups,
            **settings(config),
            fused=on_gpu if fused is None else fused,
            **options,
        )


def _entry(name: str, summary: str) -> OptimizerEntry:
    package = PACKAGES[name]
    return OptimizerEntry(
        name=name,
        source="harness.optimizers.wheels.load",
        summary=summary,
        needs=f"python -m harness.optimizers.wheels {name}",
        imports=("torch.optim", "harness.optimizers.wheels"),
        options={
            "version": text(package.versions[0]),
            "fused": flag(None, null=True),
            **_OPTIONS[name],
        },
        build=_build,
        state_bytes=unknown_bytes,
        check=_check,
        preload=_preload,
    )


ENTRIES = (
    _entry("gefen_upstream", "The authors' package: a learned 8-bit codebook, shared moments."),
    _entry("gefen_x", "A fork of the authors' package with a factored second moment."),
)
