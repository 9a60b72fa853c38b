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
        _check_part(part, content, extra)
        fixed = {"study": name, "part": part, **(content.get("overrides") or {})}
        sweep: dict[str, list[Any]] = content.get("sweep") or {}
        for values in itertools.product(*sweep.values()):
            chosen = {**fixed, **dict(zip(sweep, values, strict=True))}
            if content.get("tuned"):
                tuned = load_group("tuned", content["tuned"])
                if chosen.get("model", tuned["model"]) != tuned["model"]:
                    raise UserError(
                        f"study.parts.{part}.tuned={content['tuned']} holds rates for model "
                        f"{tuned['model']}, not for {chosen['model']}."
                    )
                chosen["optimizer.lr"] = tuned_rate(tuned, str(chosen.get("optimizer")))
            cells.append([*(f"{key}={_text(value)}" for key, value in chosen.items()), *extra])
    return cells


def _check_part(part: str, content: Any, extra: list[str]) -> None:
    """Raise UserError where a part is malformed, or the command line overrides what it sweeps."""
    if not isinstance(content, dict) or set(content) - {"overrides", "sweep", "tuned"}:
        wrong = sorted(set(content) - {"overrides", "sweep", "tuned"}) if content else [None]
        raise UserError(
            f"study.parts.{part} has {wrong[0]}, which is not known; allowed: overrides, sweep, "
            "tuned."
        )
    sweep = content.get("sweep") or {}
    for key, values in sweep.items():
        if not isinstance(values, list):
            raise UserError(f"study.parts.{part}.sweep.{key}={values} must be a list.")
        if any(text.split("=")[0].lstrip("+~") == key for text in extra):
            raise UserError(
                f"{key} is swept by part {part} of the study; leave it out, or run without study=."
            )


def tuned_rate(tuned: dict[str, Any], optimizer: str) -> float:
    """The learning rate that a tuning study chose for an optimizer."""
    winners = tuned["winners"]
    if optimizer not in winners:
        raise UserError(
            f"configs/tuned/{tuned['model']}.yaml has no learning rate for optimizer {optimizer}; "
            f"it has {', '.join(sorted(winners))}."
        )
    return float(winners[optimizer]["lr"])


def _text(value: Any) -> str:
    """A value as Hydra's override grammar reads it."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
