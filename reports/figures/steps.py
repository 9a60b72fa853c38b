"""The optimizer-step benchmark: its roofline figure and tables, from step_bench.json alone.

`python -m reports.figures.steps FOLDER` (or the file) writes roofline.png, roofline.svg,
step_bench.csv (raw units) and step_bench.md beside the file.
"""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.cells import store
from reports.data.load import ReportError, each
from reports.data.step_bench import KEYS, PRECISIONS, frame, read
from reports.data.text import TIMES, count_text, digits, missing
from reports.figures.style import (
    INK,
    WARN,
    drawing,
    heading,
    looks_by_name,
    looks_table,
    shared_legend,
    tidied,
)
from reports.tables.layout import markdown
from reports.tables.steps import view

WIDTH = 8.6  # inches, of one panel


def roofline(table: pd.DataFrame) -> Figure:
    """Time of a step beside the time of its bytes at copy bandwidth, a panel a condition."""
    groups = [group for _, group in table.groupby(KEYS, sort=False)]
    looks = looks_by_name(looks_table(), set(table["optimizer"]))
    with drawing():
        figure, axes = grid(groups)
        for axis, group in zip(axes, groups, strict=True):
            panel(axis, group, looks)
        shared_legend(figure, axes)
        heading(figure, "Optimizer step and its roofline")
    return figure


def grid(groups: list[pd.DataFrame]) -> tuple[Figure, list[Axes]]:
    """An axis for each condition, side by side where there are more than two."""
    columns = 1 if len(groups) <= 2 else 2
    rows = -(-len(groups) // columns)
    height = rows * (0.42 * max(map(len, groups)) + 1.0) + 0.8
    figure = Figure(figsize=(WIDTH * columns, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for spare in axes[len(groups) :]:
        spare.remove()
    return figure, tidied(axes[: len(groups)])


def panel(axis: Axes, group: pd.DataFrame, looks: dict[str, dict[str, str]]) -> None:
    """One condition: a row for each candidate, the fastest on top, time on a log axis."""
    ordered = group.sort_values("step_median_seconds", ascending=False, na_position="first")
    axis.set_xscale("log")
    times = ordered[["floor_seconds", "step_p90_seconds", "step_median_seconds"]].to_numpy(float)
    if np.isfinite(times).any():
        low, high = 1e3 * float(np.nanmin(times)), 1e3 * float(np.nanmax(times))
        axis.set_xlim(low / 1.6, high * max(30, (high / low) ** 0.8))  # room for the texts
    for place, row in enumerate(each(ordered)):
        if row.status == "done":
            draw_row(axis, place, row, looks[row.optimizer])
        else:
            axis.text(0.01, place, f"{TIMES} {short(row.status)}", va="center", color=WARN,
                      fontsize=9, transform=axis.get_yaxis_transform())  # fmt: skip
    axis.set_yticks(range(len(ordered)), list(ordered["candidate"]))
    axis.set_ylim(-0.6, len(ordered) - 0.4)
    axis.grid(False, axis="y")
    axis.xaxis.set_major_formatter(lambda value, _: digits(value) if value < 1 else f"{value:,.0f}")
    axis.xaxis.set_minor_formatter(lambda value, _: "")
    axis.set_xlabel("Time of one step, ms (log scale)")
    axis.set_title(title(group.iloc[0]), loc="left")


def title(first: Any) -> str:
    """Model, how much of it, precision, size and bandwidth of a panel."""
    words = [first["model"], PRECISIONS.get(first["precision"], first["precision"])]
    if first["layers"] < first["whole_layers"]:
        words.append(f"{first['layers']} of {first['whole_layers']} layers")
    size, speed = count_text(first["parameters"]), digits(first["copy_bytes_per_second"] / 1e9)
    return f"{', '.join(words)}: {size} parameters, copy {speed} GB/s"


def draw_row(axis: Axes, place: int, row: Any, look: dict[str, str]) -> None:
    """The floor as a bar, the step as a marker with p10 to p90, the share of the roofline."""
    floor, step = 1e3 * row.floor_seconds, 1e3 * row.step_median_seconds
    left = axis.get_xlim()[0]
    axis.barh(
        place, floor - left, 0.55, left=left, color="#D0D0D0",
        label="its bytes at copy bandwidth",
    )  # fmt: skip
    axis.plot([floor, step], [place, place], color=look["color"], linewidth=1)
    spread = np.array([row.step_p10_seconds, row.step_p90_seconds], dtype=float) * 1e3
    if np.isfinite(spread).all():
        axis.plot(
            spread, [place, place], color=look["color"], linewidth=5, alpha=0.35,
            solid_capstyle="butt", label="10th to 90th percentile",
        )  # fmt: skip
    axis.plot(
        step, place, look["marker"], color=look["color"], markeredgecolor=INK, markersize=7,
        linestyle="none", label="median step", zorder=3,
    )  # fmt: skip
    text = f"{digits(step)} ms, {row.roofline_percent:.0f} % of roofline"
    if not missing(row.ratio_to_reference) and row.candidate != row.reference:
        text += f", {row.ratio_to_reference:.2f} {TIMES} {row.reference}"
    end = max(step, floor, *spread[np.isfinite(spread)])
    axis.annotate(
        text, (end, place), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9
    )


def short(reason: str, limit: int = 90) -> str:
    """A reason that fits a row."""
    return reason if len(reason) <= limit else f"{reason[: limit - 1]}…"


def write(path: Path) -> str:
    """Write figure and tables beside the document; the Markdown table."""
    document = read(path)
    folder = path if path.is_dir() else path.parent
    table = frame(document)
    figure = roofline(table)
    for kind in ("png", "svg"):
        image = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(image, format=kind, dpi=150, metadata=metadata)
        store.write_bytes_atomic(folder / f"roofline.{kind}", image.getvalue())
    store.write_bytes_atomic(folder / "step_bench.csv", table.to_csv(index=False).encode())
    text = markdown(view(table, str(document["reference"])))
    store.write_bytes_atomic(folder / "step_bench.md", (text + "\n").encode())
    return text


def main(arguments: list[str] | None = None) -> int:
    """Draw what one benchmark found; a mistake is one sentence, exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m reports.figures.steps", description=__doc__)
    parser.add_argument("path", type=Path, help="folder of step_bench.json, or the file")
    path: Path = parser.parse_args(arguments).path
    try:
        write(path)
    except ReportError as error:
        print(f"reports.figures.steps: {error}", file=sys.stderr)
        return 2
    print(f"Figure: {(path if path.is_dir() else path.parent) / 'roofline.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
