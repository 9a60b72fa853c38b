"""Typed configuration: what a run is, checked before anything heavy is imported.

The dataclasses need neither Hydra nor torch, so that a machine without Hydra can build the same
configuration from plain dictionaries (`from_dict`). Hydra sees them through `harness.cli.bench`.
"""

from harness.config.checks import (
    DEVICES,
    FAMILIES,
    PRECISIONS,
    ROTARY_FAMILIES,
    validate,
)
from harness.config.types import (
    DataConfig,
    LaunchConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    StudyConfig,
    TaskConfig,
    TrackerConfig,
    from_dict,
    to_dict,
)

__all__ = [
    "DEVICES",
    "FAMILIES",
    "PRECISIONS",
    "ROTARY_FAMILIES",
    "DataConfig",
    "LaunchConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "StudyConfig",
    "TaskConfig",
    "TrackerConfig",
    "from_dict",
    "to_dict",
    "validate",
]
