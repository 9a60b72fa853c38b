"""Typed configuration: what a run is, checked before anything heavy is imported.

The dataclasses need neither Hydra nor torch, so that a machine without Hydra can build the same
configuration from plain dictionaries (`from_dict`). Hydra sees them through `harness.cli.bench`.
This module is the door to `harness.config.types`, `schema_conversion` and `schema_checks`.
"""

from harness.config.checks import (
    DEVICES,
    FAMILIES,
    PRECISIONS,
    ROTARY_FAMILIES,
    SOURCES,
    TASKS,
    TRACKERS,
    validate,
)
from harness.config.conversion import from_dict, to_dict
from harness.config.types import (
    DataConfig,
    LaunchConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    StudyConfig,
    TaskConfig,
    TrackerConfig,
)

__all__ = [
    "DEVICES",
    "FAMILIES",
    "PRECISIONS",
    "ROTARY_FAMILIES",
    "SOURCES",
    "TASKS",
    "TRACKERS",
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
