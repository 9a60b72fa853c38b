"""Expands a study (parts of fixed overrides and sweeps) into lists of Hydra overrides."""

import itertools
from typing import Any

import yaml

from harness.errors import UserError
from harness.groups import load_group
from harness.schema import StudyConfig


def expand(study: StudyConfig, name: str, extra: list[str]) -> list[list[str]]:
    """One list of overrides for each cell of the study, in the order of its file.

    A part has `overrides` (key: value), `sweep` (key: list of values; the product is taken) and
    `tuned` (name in configs/tuned: each optimizer's learning rate comes from there). `extra` are
    the command line's own overrides, which win.
    """
    cells = []
    for part, content in study.parts.items():
        unknown = set(content) - {"overrides", "sweep", "tuned"}
        if unknown:
            raise UserError(
                f"study.parts.{part}.{sorted(unknown)[0]} is not known; allowed: overrides, "
                "sweep, tuned."
            )
        fixed = {"study": name, "part": part, **(content.get("overrides") or {})}
        sweep: dict[str, list[Any]] = content.get("sweep") or {}
        for values in itertools.product(*sweep.values()):
            chosen = {**fixed, **dict(zip(sweep, values, strict=True))}
            if content.get("tuned"):
                chosen["optimizer.lr"] = tuned_rate(content["tuned"], str(chosen["optimizer"]))
            cells.append([*(f"{key}={_text(value)}" for key, value in chosen.items()), *extra])
    return cells


def tuned_rate(name: str, optimizer: str) -> float:
    """The learning rate that the tuning study behind configs/tuned/<name>.yaml chose."""
    winners = load_group("tuned", name)["winners"]
    if optimizer not in winners:
        raise UserError(
            f"configs/tuned/{name}.yaml has no learning rate for optimizer {optimizer}; it has "
            f"{', '.join(sorted(winners))}."
        )
    return float(winners[optimizer]["lr"])


def _text(value: Any) -> str:
    """A value as Hydra's override grammar reads it."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
