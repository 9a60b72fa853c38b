"""Find, check, build and size an optimizer by its name."""

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness import registry
from harness.config import OptimizerConfig
from harness.errors import UserError
from harness.models import ParameterSpec
from harness.optimizers.entry import OptimizerEntry

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

# Folders of `harness` whose files define ENTRY, or ENTRIES where one file holds several optimizers.
# The second one is named and not imported: what only studies of Gefen need stays apart.
FOLDERS = ("optimizers", "research/optimizers")
_REFERENCE = "adamw"
_COUNTS = {0: "empty: it has none,", 2: "two numbers", 3: "three numbers"}


@functools.cache
def _found() -> dict[str, OptimizerEntry]:
    """Every entry of the folders, the reference first, then by name."""
    modules = [
        registry.module(folder, name) for folder in FOLDERS for name in registry.names(folder)
    ]
    found: list[OptimizerEntry] = []
    for module in modules:
        found += getattr(module, "ENTRIES", [])
        found += [module.ENTRY] if hasattr(module, "ENTRY") else []
    found.sort(key=lambda entry: (entry.name != _REFERENCE, entry.name))
    return {entry.name: entry for entry in found}


def entries() -> dict[str, OptimizerEntry]:
    """All optimizers by name, the reference first; `instruments` are not among them."""
    return {name: entry for name, entry in _found().items() if not entry.instrument}


def instruments() -> dict[str, OptimizerEntry]:
    """Entries with a planted fault, which test the harness; found by name, never suggested."""
    return {name: entry for name, entry in _found().items() if entry.instrument}


def find(name: str) -> OptimizerEntry:
    """The optimizer or instrument of that name. Raises UserError that lists the optimizers."""
    found = _found().get(name)
    if found is None:
        raise UserError(f"optimizer.name={name!r} is unknown; allowed: {', '.join(entries())}.")
    return found


def check(config: OptimizerConfig) -> None:
    """Answer what a user can get wrong in the optimizer group; imports no optimizer library.

    Raises:
        UserError: unknown name or option, missing package, settings out of range.
    """
    entry = find(config.name)
    if any(importlib.util.find_spec(module.split(".")[0]) is None for module in entry.imports):
        raise UserError(
            f"optimizer.name={config.name!r} needs a package that is not installed: "
            f"pip install {entry.needs or entry.name}."
        )
    unknown = set(config.options) - entry.options
    if unknown:
        allowed = ", ".join(sorted(entry.options))
        raise UserError(
            f"optimizer.options has {min(unknown)!r}, which {config.name} does not know; "
            f"allowed: {allowed}."
        )
    if not config.lr > 0:
        raise UserError(f"optimizer.lr={config.lr} must be above 0.")
    if len(config.betas) != entry.betas or not all(0 <= beta < 1 for beta in config.betas):
        count = _COUNTS[entry.betas]
        raise UserError(f"optimizer.betas={config.betas} must be {count} in [0, 1).")
    if config.eps < 0 or config.weight_decay < 0:
        raise UserError(
            f"optimizer.eps={config.eps} and optimizer.weight_decay={config.weight_decay} "
            "must not be negative."
        )
    if entry.check is not None:
        entry.check(config)


def preload(config: OptimizerConfig) -> None:
    """Import all code that building and stepping the optimizer runs. UserError as `check`."""
    entry = find(config.name)
    for module in entry.imports:
        importlib.import_module(module)
    if entry.preload is not None:
        entry.preload(config)


def build_optimizer(model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    """The optimizer of `config` over the trainable parameters of `model`, on their device.

    Weight decay applies to parameters with at least two dimensions.

    Raises:
        UserError: as `check`, or the implementation refuses a setting.
    """
    check(config)
    try:
        return find(config.name).build(model, config)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().rstrip(".")
        raise UserError(f"optimizer {config.name!r} refuses its settings: {reason}.") from error


def shards(config: OptimizerConfig) -> bool:
    """Whether it steps parameters that FSDP2 has cut. UserError for an unknown optimizer."""
    answer = find(config.name).shards
    return answer is not None and answer(config)


def checkpoint_classes(config: OptimizerConfig) -> list[type]:
    """The classes that a checkpoint of it may hold beside tensors and plain values."""
    paths = (name.rpartition(".") for name in find(config.name).checkpoint_classes)
    return [getattr(importlib.import_module(module), name) for module, _, name in paths]


def prepare(config: OptimizerConfig) -> float:
    """Build what the optimizer compiles once a machine; the seconds that took, 0 for nothing."""
    build = find(config.name).prepare
    return 0.0 if build is None else build()


def flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int | None:
    """Floating-point operations of one step in closed form; None where the entry has none.

    `specs` are the parameters of the model, each tied one once. Raises UserError for an unknown
    optimizer.
    """
    count = find(config.name).flops
    return None if count is None else count(config, [spec for spec in specs if spec.trainable])


def state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes_per_element: int
) -> int | None:
    """Bytes of optimizer state in closed form, once every trainable parameter had a step.

    Args:
        config: the optimizer group of a run.
        specs: parameters of the model, each tied one once (`harness.models.meta_shapes`).
        parameter_bytes_per_element: 4 for float32 parameters, 2 for bfloat16.

    Returns:
        The bytes, or None where gradients decide them (not known in advance).

    Raises:
        UserError: there is no optimizer of that name.
    """
    trainable = [spec for spec in specs if spec.trainable]
    return find(config.name).state_bytes(config, trainable, parameter_bytes_per_element)


def step_transient_bytes(
    config: OptimizerConfig,
    specs: Sequence[ParameterSpec],
    parameter_bytes_per_element: int,
    device: str,
) -> int | None:
    """Temporary bytes of one step in closed form; None where the entry states none.

    Arguments and errors as `state_bytes`; `device` is cpu or cuda.
    """
    count = find(config.name).step_transient_bytes
    trainable = [spec for spec in specs if spec.trainable]
    return None if count is None else count(config, trainable, parameter_bytes_per_element, device)
