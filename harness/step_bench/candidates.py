"""Which optimizers take part: configs/step_bench/default.yaml and the rest of the registry."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.config.groups import load_group
from harness.errors import UserError
from harness.optimizers import entries

ALL = "all"


@dataclass(frozen=True)
class Candidate:
    """One optimizer as it is timed.

    `values` are those of its configuration group with the candidate's own options;
    `gradient_reads` is how often a step has to read each gradient.
    """

    name: str
    values: dict[str, Any]
    gradient_reads: int = 1


def settings() -> dict[str, Any]:
    """The content of configs/step_bench/default.yaml."""
    return load_group("step_bench", "default")


def known() -> dict[str, Candidate]:
    """Every candidate by name: those of the file, then registry entries that it does not use."""
    table = settings()["candidates"]
    found = {name: _candidate(name, **given) for name, given in table.items()}
    used = {given["optimizer"] for given in table.values()}
    rest = (name for name in entries() if name not in used)
    return found | {name: _candidate(name, name) for name in rest}


def choose(names: Sequence[str]) -> list[Candidate]:
    """The candidates of these names in the order of `known`; "all" is all but the special ones.

    Raises UserError that names one that is not known.
    """
    table = known()
    unknown = sorted(set(names) - set(table) - {ALL})
    if unknown:
        allowed = ", ".join((ALL, *table))
        raise UserError(f"--optimizer has {unknown[0]!r}; allowed: {allowed}.")
    apart = set(settings()["only_when_named"])
    everything = set(table) - apart if ALL in names else set()
    return [table[name] for name in table if name in everything | set(names)]


def _candidate(
    name: str,
    optimizer: str,
    options: dict[str, Any] | None = None,
    gradient_reads: int = 1,
) -> Candidate:
    group = load_group("optimizer", optimizer)
    merged = {**(group.get("options") or {}), **(options or {})}
    return Candidate(name, {**group, "options": merged}, gradient_reads)
