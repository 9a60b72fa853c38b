"""How optimizers look: one colour, marker and line style by name, the same in every figure."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import matplotlib as mpl
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from reports.data.labels import labels

INK = "#222222"
GRID = "#D9D9D9"
WARN = "#A50026"
FONT = 11
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p", "*")
SHADES = (0.0, 0.42, -0.45, 0.65, -0.7)  # towards white, towards black


@dataclass(frozen=True)
class Style:
    """Label and look of one optimizer variant."""

    label: str
    color: str
    marker: str
    line: str


def styles(runs: pd.DataFrame) -> dict[str, Style]:
    """A style for each value of `runs.variant`, in the order in which figures list them.

    Colour and marker follow the optimizer's name. Variants of one optimizer share its hue: four of
    them differ in line and marker, the next four are lighter, then darker.
    """
    table = looks_table()
    families = dict(zip(runs["variant"], families_of(runs, set(table["named"])), strict=True))
    texts = labels(runs)
    found: dict[str, Style] = {}
    for family, look in looks_by_name(table, set(families.values())).items():
        members = [variant for variant, owner in families.items() if owner == family]
        lines = [look["line"], *(line for line in LINES if line != look["line"])]
        marks = [look["marker"], *(mark for mark in MARKERS if mark != look["marker"])]
        for index, variant in enumerate(members):
            found[variant] = Style(
                label=texts[variant],
                color=shaded(look["color"], SHADES[index // len(lines) % len(SHADES)]),
                marker=marks[index % len(marks)],
                line=lines[index % len(lines)],
            )
    return found


@cache
def looks_table() -> dict[str, Any]:
    """The content of styles.yaml, read once."""
    text = resources.files("reports.figures").joinpath("styles.yaml").read_text(encoding="utf-8")
    table: dict[str, Any] = yaml.safe_load(text)
    return table


def families_of(runs: pd.DataFrame, named: set[str]) -> list[str]:
    """Whose hue each cell takes: its own name's where that has one, else its implementation's."""
    own = list(runs["optimizer"])
    if "config" not in runs:
        return own
    base = [config["optimizer"]["name"] for config in runs["config"]]
    return [mine if mine in named else owner for mine, owner in zip(own, base, strict=True)]


def shaded(color: str, amount: float) -> str:
    """A colour mixed with white (`amount` above 0) or black (below 0), as hex."""
    goal = 1.0 if amount > 0 else 0.0
    red, green, blue = (part + abs(amount) * (goal - part) for part in to_rgb(color))
    return color if amount == 0 else to_hex((red, green, blue))


def looks_by_name(table: dict[str, Any], names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Named optimizers first, in the table's order; the rest take free looks alphabetically.

    Where names outnumber the free looks, these begin again in another shade and line.
    """
    wanted = set(names)
    looks = {name: look for name, look in table["named"].items() if name in wanted}
    for index, name in enumerate(sorted(wanted - set(looks))):
        turn, place = divmod(index, len(table["free"]))
        look = table["free"][place]
        looks[name] = {
            "color": shaded(look["color"], SHADES[turn % len(SHADES)]),
            "marker": look["marker"],
            "line": LINES[(LINES.index(look["line"]) + turn) % len(LINES)],
        }
    return looks


@contextmanager
def drawing() -> Iterator[None]:
    """Fonts and colours of all figures, for the duration of one drawing."""
    settings: Any = {
        "font.size": FONT,
        "axes.titlesize": FONT,
        "axes.labelsize": FONT,
        "axes.edgecolor": INK,
        "axes.axisbelow": True,
        "legend.fontsize": FONT - 1.5,
        "legend.frameon": False,
        "svg.hashsalt": "reports",
    }
    with mpl.rc_context(settings):
        yield


def tidied(axes: list[Axes]) -> list[Axes]:
    """Axes with a light grid and without the upper and right frame."""
    for axis in axes:
        axis.grid(True, color=GRID, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return axes


def heading(figure: Figure, text: str) -> None:
    """The figure's title, flush left."""
    figure.suptitle(text, x=0.01, ha="left", weight="bold", fontsize=FONT + 1)


def shared_legend(figure: Figure, axes: list[Axes]) -> None:
    """One legend below all panels, each label once."""
    found = [axis.get_legend_handles_labels() for axis in axes]
    unique = {
        label: mark for marks, labels in found for label, mark in zip(labels, marks, strict=True)
    }
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=2)
