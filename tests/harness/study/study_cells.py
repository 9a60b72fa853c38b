"""What a study plans, seen from outside: the overrides of its cells and their configurations."""

from typing import Any

import hydra
import yaml
from omegaconf import OmegaConf

from harness.cli import bench
from harness.config import RunConfig, StudyConfig, from_dict
from harness.config.groups import configs_dir
from harness.study import parts, planner

Cell = dict[str, Any]


def composed(overrides: list[str]) -> dict[str, Any]:
    """The configuration as gefen-bench sees it."""
    bench.register_schema()
    with hydra.initialize_config_dir(str(configs_dir()), version_base="1.3"):
        plain: Any = OmegaConf.to_container(hydra.compose("config", overrides), resolve=True)
    return dict(plain)


def planned(name: str) -> list[Cell]:
    """The overrides of each cell of a study, by key."""
    study = from_dict(StudyConfig, composed([f"study={name}"])["study"])
    return [dict(map(_split, overrides)) for overrides in parts.expand(study, study.name, [])]


def _split(override: str) -> tuple[str, Any]:
    key, _, value = override.partition("=")
    return key, yaml.safe_load(value)


def resolved(cell: Cell) -> RunConfig:
    """The configuration of one cell, on the CPU."""
    overrides = [f"{key}={yaml.safe_dump(value).split()[0]}" for key, value in cell.items()]
    return planner.resolve(from_dict(RunConfig, composed([*overrides, "device=cpu"])))
