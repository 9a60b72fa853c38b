"""Figure of `harness.stam.beta1`: momentum against the size of gradients."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.audit.report import LOOKS

TITLES = {"stam": "STAM", "stam_lite": "STAMLite"}
# Largest RMS of a whole model's gradient that is clipped to norm 1: one over the root of these.
MODELS = {"124 M": 124e6, "1 B": 1e9, "8 B": 8e9}


def draw(gaussian: list[dict[str, Any]], tensors: list[dict[str, Any]], model: str) -> Figure:
    """One panel for each optimizer: lines for Gaussian gradients, dots for a model's tensors.

    Args:
        gaussian: rows of optimizer, gradient_rms, step, beta1.
        tensors: the same for each tensor; those of the last step are drawn.
        model: name for the legend.
    """
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    axes = figure.subplots(1, len(TITLES), sharex=True, sharey=True)
    for axis, (name, title) in zip(axes, TITLES.items(), strict=True):
        rows = [row for row in gaussian if row["optimizer"] == name]
        steps = sorted({row["step"] for row in rows})
        # Few lines: every step has a look of its own.
        for step, (color, _, line) in zip(steps, LOOKS, strict=False):
            curve = sorted((r["gradient_rms"], r["beta1"]) for r in rows if r["step"] == step)
            axis.plot(*zip(*curve, strict=True), color=color, linestyle=line, label=f"step {step}")
        _dots(axis, [row for row in tensors if row["optimizer"] == name], model)
        axis.set(xscale="log", title=title, xlabel="RMS of a tensor's gradient")
        axis.grid(True, color="#D9D9D9", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        _bounds(axis)
    axes[0].set_ylabel("beta1")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.suptitle("Momentum against the size of gradients", x=0.01, ha="left")
    return figure


def _dots(axis: Axes, tensors: list[dict[str, Any]], model: str) -> None:
    last = max((row["step"] for row in tensors), default=0)
    # A tensor without any gradient has no place on a logarithmic axis.
    shown = [row for row in tensors if row["step"] == last and row["gradient_rms"] > 0]
    axis.scatter(
        [row["gradient_rms"] for row in shown],
        [row["beta1"] for row in shown],
        s=14,
        color="#3A3A3A",
        zorder=3,
        label=f"tensors of {model}, step {last}",
    )


def _bounds(axis: Axes) -> None:
    for label, elements in MODELS.items():
        bound = elements**-0.5
        axis.axvline(bound, color="#7F7F7F", linewidth=0.8, linestyle=":", zorder=0)
        axis.annotate(
            label,
            (bound, 0.02),
            xycoords=axis.get_xaxis_transform(),
            rotation=90,
            ha="right",
            fontsize=8,
            color="#595959",
        )
