"""Claims from their YAML files, checked: a mistake is one sentence that names file and key."""

from collections.abc import Collection
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

from reports.claims.claim import HYPOTHESES, ROLES, Claim
from reports.claims.registry import all_estimators
from reports.data.identity import TOKEN_LOSS
from reports.data.load import ReportError, one_line
from reports.data.pairing import COMPARED
from reports.data.text import listed

NONE = "none"  # the estimator of a claim that nothing can test yet
# Types of a claim's fields: what a value in YAML must be, and how a person is told so.
KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "text"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    float | None: ((int, float, type(None)), "a number"),
    list[str]: ((list,), "a list of names"),
    list[float]: ((list,), "a list of numbers"),
    dict[str, str]: ((dict,), "a mapping of names to text"),
}


def claims_folder() -> Path:
    """configs/claims beside the package, in a checkout and in an installed wheel alike."""
    return Path(__file__).resolve().parents[2] / "configs" / "claims"


def load_claims(folder: Path) -> dict[str, Claim]:
    """Every claim in `folder` by id. Raises `ReportError` that names the file and the key."""
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise ReportError(f"{folder} holds no claim (*.yaml).")
    allowed = {*all_estimators(), NONE}
    found: dict[str, Claim] = {}
    for path in paths:
        claim = read_claim(path, allowed)
        if claim.id in found:
            raise ReportError(f"{path} has id {claim.id!r}, which another file has too.")
        found[claim.id] = claim
    return found


def read_claim(path: Path, allowed: Collection[str]) -> Claim:
    """One YAML file as a `Claim`; `allowed` are the names of estimators."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ReportError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise ReportError(f"{path} holds no mapping of keys to values.")
    known = [item.name for item in fields(Claim)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ReportError(f"{path} has the unknown key {unknown[0]!r}; known: {', '.join(known)}.")
    for item in fields(Claim):
        if item.name not in values:
            if item.default is MISSING and item.default_factory is MISSING:
                raise ReportError(f"{path} lacks the key {item.name!r}.")
        else:
            check_kind(path, item.name, item.type, values[item.name])
    check_values(path, values, allowed)
    return Claim(**values)


def check_kind(path: Path, key: str, kind: Any, value: Any) -> None:
    """Refuse a value of another type than the field's."""
    types, words = KINDS[kind]
    fits = isinstance(value, types) and not isinstance(value, bool)
    if fits and isinstance(value, list | dict):
        entries = (int, float) if kind == list[float] else str
        fits = all(isinstance(e, entries) and not isinstance(e, bool) for e in value)
    if fits and isinstance(value, dict):
        fits = all(isinstance(entry, str) for entry in value.values())
    if not fits:
        raise ReportError(f"{path} has {key}={value!r}; it must be {words}.")


def check_values(path: Path, values: dict[str, Any], allowed: Collection[str]) -> None:
    """Refuse values that no estimator could use."""

    def refuse(key: str, wanted: str) -> None:
        raise ReportError(f"{path} has {key} {values[key]!r}; {wanted}.")

    if values["estimator"] not in allowed:
        refuse("estimator", f"known: {', '.join(sorted(allowed))}")
    if values.get("hypothesis", HYPOTHESES[0]) not in HYPOTHESES:
        refuse("hypothesis", f"known: {', '.join(HYPOTHESES)}")
    if values.get("task", TOKEN_LOSS[0]) not in TOKEN_LOSS:
        refuse("task", f"known: {', '.join(TOKEN_LOSS)}")
    if values.get("role", ROLES[0]) not in ROLES:
        refuse("role", f"known: {', '.join(ROLES)}")
    if not set(values.get("allow_different", ())) <= set(COMPARED):
        refuse("allow_different", f"allowed are {', '.join(COMPARED)}")
    for key in ("alpha", "power"):
        if not 0 < values.get(key, 0.5) < 1:
            refuse(key, "it must lie between 0 and 1")
    for key in set(values.get("missing", ())) - set(values["subjects"]):
        raise ReportError(f"{path} has missing.{key}, but no such subject.")
    if values["estimator"] == NONE and set(values.get("missing", ())) != set(values["subjects"]):
        refuse("estimator", f"so `missing` must say why for {listed(values['subjects'])}")
