"""The figures as a page of Markdown tables."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harness.research.robustness.figures import Drift, ModelState, Movement
from harness.research.robustness.remedies import SmallBlock, Stop, TwoTasks
from harness.research.robustness.scenarios import COLUMN_SCALES, STOP_AFTER

_SCALES = ", ".join(f"{scale:g}" for scale in COLUMN_SCALES)


def page(content: Mapping[str, Any]) -> str:
    """Return the page; `content` is that of the JSON file, of which parts may be missing."""
    parts = [
        "# Robustness of Gefen\n",
        "Written by `python -m harness.research.robustness`; the same on every machine up to "
        "rounding.\n",
    ]
    for key, section in _SECTIONS.items():
        if key in content:
            parts += [*section(content), ""]
    return "\n".join(parts[:-1]) + "\n"


def _movements(content: Mapping[str, Any]) -> list[str]:
    rows: list[Movement] = content["movements"]
    return [
        "## Where a gradient stops, and columns of unequal scale\n",
        f"Movement: path length over {content['movement_steps']:,} steps of elements whose "
        f"gradient is zero from step {STOP_AFTER} on, over AdamW's on the same gradients. Update "
        f"RMS: over AdamW's, for interleaved columns whose gradients are at {_SCALES}.\n",
        *_table(
            ("second moment", "bits", "betas", "movement", f"update RMS at {_SCALES}"),
            (
                (
                    row["second_moment"],
                    str(row["first_moment_bits"]),
                    ", ".join(map(str, row["betas"])),
                    f"{row['movement_ratio']:.3f}",
                    ", ".join(f"{ratio:.3f}" for ratio in row["update_rms_ratios"]),
                )
                for row in rows
            ),
        ),
    ]


def _stops(content: Mapping[str, Any]) -> list[str]:
    rows: list[Stop] = content["stops"]
    return [
        "## The same movement without the remedies\n",
        "Factored second moment, nearest rounding, first moment not divided by its column factor, "
        "no bound on an element's step.\n",
        *_table(
            ("bits", "betas", "steps", "movement"),
            (
                (
                    str(row["first_moment_bits"]),
                    ", ".join(map(str, row["betas"])),
                    f"{row['steps']:,}",
                    format(row["movement_ratio"], ".1f" if row["movement_ratio"] < 1e3 else ".1e"),
                )
                for row in rows
            ),
        ),
    ]


def _small_blocks(content: Mapping[str, Any]) -> list[str]:
    rows: list[SmallBlock] = content["small_blocks"]
    return [
        "## Where small rows meet small columns\n",
        f"Largest update of an element (units of the learning rate) over {rows[0]['steps']} steps, "
        "in the lower right quarter of a matrix with gradients on its diagonal quarters alone, at "
        "1 in the upper left one and at the scale below in the lower right one; mean and standard "
        f"deviation over {len(rows[0]['largest_updates'])} seeds. Gefen: factored, 8 bits.\n",
        *_table(
            ("optimizer", "bound", "scale", "largest update"),
            (
                (
                    row["optimizer"],
                    row["bound"] or "",
                    f"{row['scale']:g}",
                    _mean_and_deviation(row["largest_updates"], ",.1f"),
                )
                for row in rows
            ),
        ),
    ]


def _two_tasks(content: Mapping[str, Any]) -> list[str]:
    rows: list[TwoTasks] = content["two_tasks"]
    first = rows[0]
    return [
        "## Two tasks of unequal weight in one matrix\n",
        f"Two linear regressions, each in a diagonal quarter, of loss weight 1 and "
        f"{first['weight']:g}: squared error after {first['steps']} steps at a learning rate of "
        f"{first['lr']:g} (about 1 at the start), mean and standard deviation over "
        f"{len(first['light_losses'])} seeds. Gefen: factored, 8 bits.\n",
        *_table(
            ("optimizer", "bound", "task of weight 1", f"task of weight {first['weight']:g}"),
            (
                (
                    row["optimizer"],
                    row["bound"] or "",
                    _mean_and_deviation(row["heavy_losses"], ".4f"),
                    _mean_and_deviation(row["light_losses"], ".4f"),
                )
                for row in rows
            ),
        ),
    ]


def _drifts(content: Mapping[str, Any]) -> list[str]:
    rows: list[Drift] = content["drifts"]
    return [
        "## Second moment of a bfloat16 parameter against float64\n",
        *_table(
            ("second moment", "gradients", "steps", "largest relative error"),
            (
                (
                    row["second_moment"],
                    row["gradients"],
                    f"{row['steps']:,}",
                    f"{row['largest_relative_error']:.1e}",
                )
                for row in rows
            ),
        ),
    ]


def _model_states(content: Mapping[str, Any]) -> list[str]:
    rows: list[ModelState] = content["model_states"]
    header = ("model", "parameters", "second moment", "bits", "state bytes", "closed form")
    return [
        "## State of whole models, created on the meta device\n",
        *_table(
            (*header, "B/param"),
            (
                (
                    row["model"],
                    f"{row['parameters']:,}",
                    row["second_moment"],
                    str(row["first_moment_bits"]),
                    f"{row['created_bytes']:,}",
                    "equal" if row["created_bytes"] == row["closed_form_bytes"] else "DIFFERS",
                    f"{row['bytes_per_parameter']:.4f}",
                )
                for row in rows
            ),
        ),
    ]


_SECTIONS: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "movements": _movements,
    "stops": _stops,
    "small_blocks": _small_blocks,
    "two_tasks": _two_tasks,
    "drifts": _drifts,
    "model_states": _model_states,
}


def _mean_and_deviation(values: Sequence[float], form: str) -> str:
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
