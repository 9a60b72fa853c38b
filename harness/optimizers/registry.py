"""The registry of optimizers: find one by name, check its settings, build it, size its state."""

import functools
import importlib
import importlib.util
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness import registry
from harness.config import OptimizerConfig
from harness.errors import UserError
from harness.models import ParameterSpec
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.options import check_options

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

# Folders of `harness` whose files define ENTRY, or ENTRIES where one file holds several optimizers.
# The second one is named and not imported: what only studies of Gefen need stays apart.
FOLDERS = ("optimizers", "research/optimizers")
_REFERENCE = "adamw"
_COUNTS = {0: "empty: it has none,", 2: "two numbers", 3: "three numbers"}


@functools.cache
def _found() -> dict[str, tuple[OptimizerEntry, str]]:
    """Every entry of the folders and the module of its file, the reference first, then by name."""
    found: list[tuple[OptimizerEntry, str]] = []
    for folder in FOLDERS:
        for name in registry.names(folder):
            file = registry.module(folder, name)
            own = [file.ENTRY] if hasattr(file, "ENTRY") else getattr(file, "ENTRIES", ())
            found += [(entry, file.__name__) for entry in own]
    found.sort(key=lambda item: (item[0].name != _REFERENCE, item[0].name))
    return {entry.name: (entry, module) for entry, module in found}


def entries() -> dict[str, OptimizerEntry]:
    """All optimizers by name, the reference first; `instruments` are not among them."""
    return {name: entry for name, (entry, _) in _found().items() if not entry.instrument}


def instruments() -> dict[str, OptimizerEntry]:
    """Entries with a planted fault, which test the harness; found by name, never suggested."""
    return {name: entry for name, (entry, _) in _found().items() if entry.instrument}


def code(name: str) -> list[str]:
    """The modules that an optimizer's cells rest on: its own file's and its implementation's."""
    entry = find(name)
    return [_found()[name][1], *entry.modules]


def find(name: str) -> OptimizerEntry:
    """The optimizer or instrument of that name. Raises UserError that lists the optimizers."""
    if name not in _found():
        raise UserError(f"optimizer.name={name!r} is unknown; allowed: {', '.join(entries())}.")
    return _found()[name][0]


def check(config: OptimizerConfig) -> None:
    """Answer what a user can get wrong in the optimizer group; imports no optimizer library.

    Raises:
        UserError: unknown name or option, missing package, settings out of range.
    """
    entry = find(config.name)
    if any(importlib.util.find_spec(module.split(".")[0]) is None for module in entry.modules):
        raise UserError(
            f"optimizer.name={config.name!r} needs a package that is not installed: "
            f"pip install {entry.needs or entry.name}."
        )
    check_options(config.name, entry.options, config.options)
    if not (config.lr > 0 and math.isfinite(config.lr)):
        raise UserError(f"optimizer.lr={config.lr} must be a finite number above 0.")
    if len(config.betas) != entry.betas or not all(0 <= beta < 1 for beta in config.betas):
        count = _COUNTS[entry.betas]
        raise UserError(f"optimizer.betas={config.betas} must be {count} in [0, 1).")
    for key in ("eps", "weight_decay"):
        value = getattr(config, key)
        if not (value >= 0 and math.isfinite(value)):
            raise UserError(f"optimizer.{key}={value} must be a finite number, 0 or above.")
    if entry.check is not None:
        entry.check(entry.filled(config))


def preload(config: OptimizerConfig) -> None:
    """Import all code that building and stepping the optimizer runs. UserError as `check`."""
    entry = find(config.name)
    for module in entry.modules:
        importlib.import_module(module)
    if entry.preload is not None:
        entry.preload(entry.filled(config))


def build_optimizer(model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    """The optimizer of `config` over the trainable parameters of `model`, on their device.

    Weight decay applies to parameters with at least two dimensions.

    Raises:
        UserError: as `check`, or the implementation refuses a setting.
    """
    check(config)
    entry = find(config.name)
    try:
        module, _, kind = entry.source.rpartition(".")
        found = getattr(importlib.import_module(module), kind)
        return entry.build(found, model, entry.filled(config))
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().rstrip(".")
        raise UserError(f"optimizer {config.name!r} refuses its settings: {reason}.") from error


def shards(config: OptimizerConfig) -> bool:
    """Whether it steps parameters that FSDP2 has cut. UserError for an unknown optimizer."""
    entry = find(config.name)
    return entry.shards if isinstance(entry.shards, bool) else entry.shards(entry.filled(config))


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
    entry = find(config.name)
    return None if entry.flops is None else entry.flops(entry.filled(config), _trainable(specs))


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
    entry = find(config.name)
    return entry.state_bytes(entry.filled(config), _trainable(specs), parameter_bytes_per_element)


def step_transient_bytes(
    config: OptimizerConfig,
    specs: Sequence[ParameterSpec],
    parameter_bytes_per_element: int,
    device: str,
) -> int | None:
    """Temporary bytes of one step in closed form; None where the entry states none.

    Arguments and errors as `state_bytes`; `device` is cpu or cuda.
    """
    entry = find(config.name)
    count = entry.step_transient_bytes
    if count is None:
        return None
    return count(entry.filled(config), _trainable(specs), parameter_bytes_per_element, device)


def _trainable(specs: Sequence[ParameterSpec]) -> list[ParameterSpec]:
    return [spec for spec in specs if spec.trainable]
