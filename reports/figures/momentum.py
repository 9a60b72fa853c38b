"""Momentum against the size of gradients, from the file that `harness.research.beta1` writes."""

import json
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.cells import store
from reports.data.labels import label
from reports.data.load import ReportError, StudyData, one_line
from reports.data.report import Report
from reports.data.text import number_text
from reports.figures.layout import legend_below, narrow, plots
from reports.figures.registry import Drawn
from reports.figures.style import INK
from reports.tables.sensitivity import STABILITY

# Largest RMS of a whole model's gradient that is clipped to norm 1: one over the root of these.
MODELS = {"124 M": 124e6, "1 B": 1e9, "8 B": 8e9}
# Few lines, from the first steps to the last: colours of Okabe and Ito with a line style each.
STEPS = (("#56B4E9", ":"), ("#009E73", "-."), ("#0072B2", "--"), ("#D55E00", "-"))
Facts = dict[str, Any]


def figures(report: Report) -> list[Drawn]:
    """Momentum against the size of gradients, where the study's folder has it measured."""
    found = momenta(report.data)
    if found is None:
        return []
    draw, title = partial(momentum, found), "Momentum against the size of gradients"
    return [Drawn(STABILITY, "momentum", title, caption(found), draw, (), 1)]


def momenta(data: StudyData) -> Facts | None:
    """The content of the file in the study's folder; None where there is none.

    Raises `ReportError` for a file without its keys.
    """
    path = data.folder / store.MOMENTA_FILE
    if not path.is_file():
        return None
    try:
        found: Facts = json.loads(path.read_text(encoding="utf-8"))
        for row in [*found["gaussian"], *found["tensors"]]:
            row["optimizer"], row["step"], row["gradient_rms"], row["beta1"]
        found["config"]["model"]["name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{path} cannot be read: {one_line(error)}.") from error
    return found


def momentum(found: Facts) -> Figure:
    """A panel for each optimizer: lines for Gaussian gradients, dots for a model's tensors."""
    names = list(dict.fromkeys(row["optimizer"] for row in found["gaussian"]))
    steps = sorted({row["step"] for row in found["gaussian"]})[-len(STEPS) :]
    with narrow():
        legends = [0] * (len(names) - 1) + [len(steps) + 1]
        figure, axes = plots(len(names), legends, height=1.7)
        for axis, name in zip(axes, names, strict=True):
            rows = [row for row in found["gaussian"] if row["optimizer"] == name]
            axis.set_xscale("log")
            for step, (color, line) in zip(steps, STEPS, strict=False):
                curve = sorted((r["gradient_rms"], r["beta1"]) for r in rows if r["step"] == step)
                axis.plot(*zip(*curve, strict=True), color=color, linestyle=line,
                          label=f"Gaussian gradients, step {step:,}")  # fmt: skip
            dots(axis, [row for row in found["tensors"] if row["optimizer"] == name], found)
            bounds(axis)
            axis.set_title(label(name), loc="left")
            axis.set(xlabel="RMS of a tensor's gradient (log scale)", ylabel="beta1")
        legend_below(axes[-1])
    return figure


def dots(axis: Axes, tensors: list[dict[str, Any]], found: Facts) -> None:
    """The tensors of the model at the last step; one without a gradient has no place."""
    last = max((row["step"] for row in tensors), default=0)
    shown = [row for row in tensors if row["step"] == last and row["gradient_rms"] > 0]
    label = f"tensors of {found['config']['model']['name']}, step {last}"
    axis.plot([row["gradient_rms"] for row in shown], [row["beta1"] for row in shown], "o",
              color=INK, markersize=2.5, zorder=3, label=label)  # fmt: skip


def bounds(axis: Axes) -> None:
    """The largest RMS of all gradients of a larger model together, once clipped.

    Of no single tensor: one tensor may have all of the norm and few elements, so a larger RMS.
    """
    for size, elements in MODELS.items():
        bound = elements**-0.5
        axis.axvline(bound, color=INK, linewidth=0.8, linestyle=":", zorder=0)
        axis.annotate(size, (bound, 0.04), xycoords=axis.get_xaxis_transform(), rotation=90,
                      ha="right", va="bottom", fontsize=7)  # fmt: skip


def caption(found: Facts) -> str:
    """What is shown, with the range of beta1 at the model's own gradients."""
    ranges = []
    for row in found.get("summary", []):
        low, high = number_text(row["beta1_lowest"]), number_text(row["beta1_highest"])
        ranges.append(f"{row['optimizer']} at step {row['step']}: {low} to {high}")
    said = (
        "How far momentum adapts: beta1 under Gaussian gradients of each root mean square, and of "
        "the tensors of a model at its own clipped gradients. Dotted: the largest RMS, over all "
        "gradients of a model of that size together, that clipping to norm 1 leaves; of its "
        "tensors some lie above their common RMS, small ones perhaps beyond the line."
    )
    return f"{said} Over the model's tensors, {'; '.join(ranges)}." if ranges else said
