"""Configuration groups read with PyYAML alone, for machines without Hydra."""

import os
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError


def configs_dir() -> Path:
    """The folder `configs/` beside the package `harness`."""
    return Path(__file__).resolve().parents[2] / "configs"


def cache_folder(named: str | None = None) -> Path:
    """What is kept between runs: `named`, else GEFEN_BENCH_CACHE, else ~/.cache/gefen-bench.

    Raises UserError where there is no home: HOME is not set, and the system knows no such user.
    """
    named = named or os.environ.get("GEFEN_BENCH_CACHE")
    try:
        return Path(named) if named else Path.home() / ".cache" / "gefen-bench"
    except RuntimeError:
        raise UserError(
            "There is no home folder to keep prepared data in (HOME is not set, and the system "
            "does not know this user); set GEFEN_BENCH_CACHE, or give cache=FOLDER."
        ) from None


def names(group: str, pattern: str = "*.yaml") -> list[str]:
    """The options of a group, sorted; those in folders of their own with pattern `**/*.yaml`."""
    folder = configs_dir() / group
    found = (path.relative_to(folder).with_suffix("") for path in folder.glob(pattern))
    return sorted(path.as_posix() for path in found)


def load_group(group: str, name: str) -> dict[str, Any]:
    """The values of `configs/<group>/<name>.yaml`, its `defaults` list resolved.

    Only what the groups here use of Hydra's defaults lists is understood: names of files in the
    same group and `_self_`; later entries win. Raises UserError for an unknown group or name, or
    a file that is not a mapping.
    """
    path = configs_dir() / group / f"{name}.yaml"
    if name not in names(group, "**/*.yaml"):
        allowed = ", ".join(names(group)) or "nothing"
        raise UserError(f"{group}={name} is not known; allowed: {allowed}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as YAML: {reason}.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a mapping of keys to values.")
    defaults = values.pop("defaults", ["_self_"])
    merged: dict[str, Any] = {}
    for entry in defaults if "_self_" in defaults else [*defaults, "_self_"]:
        merged.update(values if entry == "_self_" else load_group(group, str(entry)))
    return merged
