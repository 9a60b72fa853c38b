"""How optimizers look: one colour, marker and line style by name, the same in every figure."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

import matplotlib as mpl
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.load import each

INK = "#222222"
GRID = "#D9D9D9"
WARN = "#A50026"
FONT = 11


@dataclass(frozen=True)
class Style:
    """Label and look of one optimizer variant."""

    label: str
    color: str
    marker: str
    line: str


def styles(runs: pd.DataFrame) -> dict[str, Style]:
    """A style for each value of `runs.variant`, in the order in which figures list them.

    Colour and marker follow the optimizer's name; variants of one optimizer differ in line style.
    """
    table = yaml.safe_load(
        resources.files("reports").joinpath("styles.yaml").read_text(encoding="utf-8")
    )
    looks = looks_by_name(table, set(runs["optimizer"]))
    found: dict[str, Style] = {}
    for name, look in looks.items():
        variants = list(dict.fromkeys(runs.loc[runs["optimizer"] == name, "variant"]))
        lines = [look["line"], *(line for line in ("-", "--", "-.", ":") if line != look["line"])]
        for index, variant in enumerate(variants):
            label = look["label"] + str(variant)[len(name) :]
            line = lines[index % len(lines)]
            found[variant] = Style(label, look["color"], look["marker"], line)
    return found


def looks_by_name(table: dict[str, Any], names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Named optimizers first, in the table's order; the rest take free looks alphabetically."""
    wanted = set(names)
    looks = {name: look for name, look in table["named"].items() if name in wanted}
    for index, name in enumerate(sorted(wanted - set(looks))):
        looks[name] = {"label": name, **table["free"][index % len(table["free"])]}
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


def panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` axes, `width` x `height` inches each, at most two in a row."""
    columns = min(2, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for spare in axes[count:]:
        spare.set_axis_off()
    for axis in axes[:count]:  # ticks that do not depend on the size: the layout is found at once
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.yaxis.set_major_locator(MaxNLocator(6))
    return figure, tidied(axes[:count])


def stacked_panels(rows: list[int], width: float, extra: float) -> tuple[Figure, list[Axes]]:
    """Axes below one another, each as high as its number of `rows`; `extra` inches beside."""
    heights = [0.42 * count + 1.0 for count in rows]
    figure = Figure(figsize=(width, sum(heights) + extra), layout="constrained")
    grid = figure.subplots(len(rows), 1, squeeze=False, gridspec_kw={"height_ratios": rows})
    return figure, tidied(list(grid.ravel()))


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


def conditions(frame: pd.DataFrame, keys: list[str]) -> list[pd.DataFrame]:
    """Groups by `keys` in order, with precisions from wide to narrow."""
    order = {name: index for index, name in enumerate(("fp32", "bf16_mixed", "bf16_pure"))}

    def place(group: pd.DataFrame) -> tuple[Any, ...]:
        first = group.iloc[0]
        return tuple(order.get(first[key], 9) if key == "precision" else first[key] for key in keys)

    return sorted((group for _, group in frame.groupby(keys, dropna=False)), key=place)


def note(figure: Figure, text: str) -> None:
    """A line of small print below the figure; used for cells that have no value to draw."""
    if text:
        figure.supxlabel(text, fontsize=FONT - 2, color=WARN, wrap=True)


def condition(group: pd.DataFrame, *keys: str) -> str:
    """A panel's title from the columns that define it."""
    words = {"seq_len": "{} tokens"}
    return ", ".join(words.get(key, "{}").format(group[key].iloc[0]) for key in keys)


def failures(runs: pd.DataFrame, looks: dict[str, Style]) -> str:
    """Cells that did not finish, as one line: "diverged: Gefen seed 3 (id)"."""
    failed = runs[runs["status"] != "done"]
    parts = [
        f"{row.status}: {looks[row.variant].label} seed {row.seed} ({row.id[:8]})"
        for row in each(failed)
    ]
    shown = "; ".join(parts[:4]) + (f"; and {len(parts) - 4} more" if len(parts) > 4 else "")
    return f"Not finished: {shown}" if parts else ""
