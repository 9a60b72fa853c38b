"""The published Gefen packages, run as they are: gefen 1.2.3 and gefen-x 0.5.0.

Benedek, Koren and Fried, "Gefen: Optimized Stochastic Optimizer", arXiv 2606.13894; gefen-x is a
fork of it by others. Both import as `gefen`, as our own library does, and are loaded beside it
(`harness.optimizers.wheels`). Their first step takes tens of seconds on a CPU.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import decay_groups
from harness.optimizers.wheels import PACKAGES, Published, folder, load

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_OPTIONS = {
    "gefen_upstream": frozenset({"version", "fused"}),
    "gefen_x": frozenset(
        {
            *("version", "fused", "factored_v_2d", "stochastic_round", "deterministic"),
            *("force_1d_period_one", "force_2d_period_one", "codebook_refresh_every"),
        }
    ),
}


def _version(config: OptimizerConfig) -> str:
    return str(config.options.get("version", PACKAGES[config.name].versions[0]))


def _check(config: OptimizerConfig) -> None:
    folder(config.name, _version(config))


def _preload(config: OptimizerConfig) -> None:
    load(config.name, _version(config))


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


def _build(model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    package = load(config.name, _version(config))
    on_gpu = all(p.is_cuda for p in model.parameters())
    options = {key: value for key, value in config.options.items() if key != "version"}
    fused = options.pop("fused", None)
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
            lr=config.lr,
            betas=(config.betas[0], config.betas[1]),
            eps=config.eps,
            fused=on_gpu if fused is None else fused,
            **options,
        )


def _state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> None:
    """The first gradients decide which elements share a second moment: not known in advance."""
    return None


def _entry(name: str, summary: str) -> OptimizerEntry:
    package = PACKAGES[name]
    return OptimizerEntry(
        name=name,
        source=f"{package.name} {package.versions[0]}, the published wheel",
        summary=summary,
        needs=f"python -m harness.optimizers.wheels {name}",
        imports=("torch.optim",),
        options=_OPTIONS[name],
        build=_build,
        state_bytes=_state_bytes,
        check=_check,
        preload=_preload,
    )


ENTRIES = (
    _entry("gefen_upstream", "The authors' package: a learned 8-bit codebook, shared moments."),
    _entry("gefen_x", "A fork of the authors' package with a factored second moment."),
)
