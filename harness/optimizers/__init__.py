"""The optimizers that can be measured: one file and one configuration each (see README.md).

Importing this package needs no torch and no optimizer library; building an optimizer does.
"""

from harness.optimizers.registry import (
    OptimizerEntry,
    build_optimizer,
    check,
    checkpoint_classes,
    code,
    entries,
    find,
    flops,
    instruments,
    preload,
    prepare,
    shards,
    state_bytes,
    step_transient_bytes,
)

__all__ = [
    "OptimizerEntry",
    "build_optimizer",
    "check",
    "checkpoint_classes",
    "code",
    "entries",
    "find",
    "flops",
    "instruments",
    "preload",
    "prepare",
    "shards",
    "state_bytes",
    "step_transient_bytes",
]
