"""What the workspace shows: configs/dashboard/wandb.yaml as checked dataclasses. Needs no W&B."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.config.groups import configs_dir, load_group
from harness.errors import UserError

KINDS = ("line", "scatter", "bars", "claims")
FLAGS = ("group", "log_x", "log_y")
CLAIMS_TEXT = (
    "Verdicts are not drawn here: `gefen-claims` computes them from the records, with intervals, "
    "margins and n, and `gefen-report` shows them. The claims:"
)


@dataclass(frozen=True)
class Panel:
    """One panel. `kind` is line, scatter, bars or claims; `group` averages over repetitions.

    `x` and each of `y` is a metric of the history (line, bars), or `summary:METRIC` or
    `config:KEY` (scatter).
    """

    kind: str
    title: str
    x: str | None = None
    y: tuple[str, ...] = ()
    group: bool = False
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Section:
    """A heading and its panels."""

    name: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Spec:
    """A workspace; `max_runs` bounds the runs of a panel, `source` is the YAML's mapping."""

    name: str
    max_runs: int
    sections: tuple[Section, ...]
    claims: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)

    def keys(self) -> set[str]:
        """Every metric and setting that a panel names, prefixes included."""
        panels = [panel for section in self.sections for panel in section.panels]
        return {key for panel in panels for key in (panel.x, *panel.y) if key is not None}

    def to_dict(self) -> dict[str, Any]:
        """As the YAML has it, with the text of the claims panel."""
        values = copy.deepcopy(dict(self.source))
        for section in values["sections"]:
            for panel in section["panels"]:
                panel |= {"text": claims_text(self.claims)} if "claims" in panel else {}
        return values


def load() -> Spec:
    """The spec under version control; UserError where the file is wrong."""
    claims = tuple(
        str(load_group("claims", path.stem)["title"])
        for path in sorted((configs_dir() / "claims").glob("*.yaml"))
    )
    return parse(load_group("dashboard", "wandb"), claims)


def parse(values: Mapping[str, Any], claims: tuple[str, ...] = ()) -> Spec:
    """A spec from the YAML's mapping; UserError names what is wrong."""
    try:
        sections = tuple(
            Section(str(item["name"]), tuple(_panel(panel) for panel in item["panels"]))
            for item in values["sections"]
        )
        return Spec(str(values["name"]), int(values["max_runs"]), sections, claims, values)
    except KeyError as error:
        raise UserError(f"The dashboard's spec lacks the key {error}.") from None


def claims_text(claims: tuple[str, ...]) -> str:
    """The Claims section as Markdown."""
    return "\n".join([CLAIMS_TEXT, "", *(f"- {claim}" for claim in claims)])


def _panel(values: Mapping[str, Any]) -> Panel:
    kinds = [kind for kind in KINDS if kind in values]
    if len(kinds) != 1:
        raise UserError(f"A panel of the dashboard, {dict(values)}, needs one of {KINDS}.")
    unknown = sorted(set(values) - {kinds[0], "x", "y", *FLAGS})
    if unknown:
        raise UserError(f"Panel {values[kinds[0]]!r} has the unknown key {unknown[0]!r}.")
    y = values.get("y", ())
    return Panel(
        kind=kinds[0],
        title=str(values[kinds[0]]),
        x=values.get("x"),
        y=(y,) if isinstance(y, str) else tuple(y),
        **{key: bool(values.get(key, False)) for key in FLAGS},
    )
