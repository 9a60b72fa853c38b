"""The table of `gefen-bench optimizer=list`: every optimizer, its state and where it starts."""

import math
from collections.abc import Sequence

from harness.config import ModelConfig, OptimizerConfig
from harness.config.groups import configs_dir, load_group
from harness.errors import UserError
from harness.models import ParameterSpec, meta_shapes
from harness.optimizers import registry

_MODEL, _VOCABULARY, _FLOAT32_BYTES = "gpt2_124m", 50257, 4
_HEAD = ("optimizer", "source", "state B/param", "lr", "needs")


def table() -> str:
    """All configurations of `configs/optimizer`, aligned, one a line under a head.

    `needs` is empty where the base install has all of it, and ends in "(missing)" where what it
    names is not there.
    """
    specs = meta_shapes(ModelConfig(**load_group("model", _MODEL)), _VOCABULARY)
    known = list(registry.entries())
    files = (path.stem for path in (configs_dir() / "optimizer").glob("*.yaml"))
    configs = {name: OptimizerConfig(**load_group("optimizer", name)) for name in files}
    names = sorted(configs, key=lambda name: (known.index(configs[name].name), name))
    rows = [_HEAD, *(_row(name, configs[name], specs) for name in names)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    note = (
        f"state B/param: bytes of optimizer state per parameter, closed form for {_MODEL} in "
        "float32; -: known only from a run."
    )
    return "\n".join([*lines, "", note])


def _row(name: str, config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> tuple[str, ...]:
    entry = registry.find(config.name)
    state = registry.state_bytes(config, specs, _FLOAT32_BYTES)
    count = sum(math.prod(spec.shape) for spec in specs)
    size = "-" if state is None else f"{state / count:.2f}"
    return (name, entry.source, size, f"{config.lr:g}", _needs(config))


def _needs(config: OptimizerConfig) -> str:
    entry = registry.find(config.name)
    if entry.needs is None:
        return ""
    try:
        registry.check(config)
    except UserError:
        return f"{entry.needs} (missing)"
    return entry.needs
