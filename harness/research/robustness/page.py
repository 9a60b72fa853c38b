"""The results as a page of Markdown tables."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.research.robustness.scenarios import COLUMN_SCALES, STOP_AFTER

Row = Mapping[str, Any]
_SCALES = ", ".join(f"{scale:g}" for scale in COLUMN_SCALES)


@dataclass(frozen=True)
class Section:
    """A heading, what the table shows, and its columns: a cell's text from a row of the figures."""

    title: str
    columns: Mapping[str, Callable[[Row], str]]
    text: Callable[[Sequence[Row], Mapping[str, Any]], str] = lambda rows, content: ""


def page(content: Mapping[str, Any]) -> str:
    """Return the page; `content` is that of the JSON file, of which parts may be missing."""
    parts = [
        "# Robustness of Gefen\n",
        "Written by `python -m harness.research.robustness`; the same on every machine up to "
        "rounding.\n",
    ]
    for key, section in _SECTIONS.items():
        if key in content:
            parts += [*_lines(section, content[key], content), ""]
    return "\n".join(parts[:-1]) + "\n"


def _lines(section: Section, rows: Sequence[Row], content: Mapping[str, Any]) -> list[str]:
    text = section.text(rows, content)
    weights = {"weight": f"{rows[0]['weight']:g}"} if "weight" in rows[0] else {}
    table = [
        [name.format(**weights) for name in section.columns],
        ["---"] * len(section.columns),
        *([cell(row) for cell in section.columns.values()] for row in rows),
    ]
    lines = ["| " + " | ".join(line) + " |" for line in table]
    return [f"## {section.title}\n", *([f"{text}\n"] if text else []), *lines]


def _key(key: str, form: str = "") -> Callable[[Row], str]:
    """The value of a key in a format, nothing for null; lists are joined by commas."""

    def cell(row: Row) -> str:
        value = row[key]
        if isinstance(value, Sequence) and not isinstance(value, str):
            return ", ".join(format(one, form) for one in value)
        return "" if value is None else format(value, form)

    return cell


def _spread(key: str, form: str) -> Callable[[Row], str]:
    """Mean and standard deviation over the values of a key."""
    return lambda row: f"{statistics.mean(row[key]):{form}} ± {statistics.stdev(row[key]):{form}}"


def _movement(row: Row) -> str:
    return format(row["movement_ratio"], ".1f" if row["movement_ratio"] < 1e3 else ".1e")


def _agreement(row: Row) -> str:
    return "equal" if row["created_bytes"] == row["closed_form_bytes"] else "DIFFERS"


_OPTION = {"second moment": _key("second_moment"), "bits": _key("first_moment_bits", "d")}
_RIVAL = {"optimizer": _key("optimizer"), "bound": _key("bound")}
_SECTIONS = {
    "movements": Section(
        "Where a gradient stops, and columns of unequal scale",
        {
            **_OPTION,
            "betas": _key("betas"),
            "movement": _key("movement_ratio", ".3f"),
            f"update RMS at {_SCALES}": _key("update_rms_ratios", ".3f"),
        },
        lambda rows, content: (
            f"Movement: path length over {content['movement_steps']:,} steps of elements whose "
            f"gradient is zero from step {STOP_AFTER} on, over AdamW's on the same gradients. "
            f"Update RMS: over AdamW's, for interleaved columns whose gradients are at {_SCALES}."
        ),
    ),
    "stops": Section(
        "The same movement without the remedies",
        {
            "bits": _OPTION["bits"],
            "betas": _key("betas"),
            "steps": _key("steps", ","),
            "movement": _movement,
        },
        lambda rows, content: (
            "Factored second moment, nearest rounding, first moment not divided by its column "
            "factor, no bound on an element's step."
        ),
    ),
    "small_blocks": Section(
        "Where small rows meet small columns",
        {
            **_RIVAL,
            "scale": _key("scale", "g"),
            "largest update": _spread("largest_updates", ",.1f"),
        },
        lambda rows, content: (
            f"Largest update of an element (units of the learning rate) over {rows[0]['steps']} "
            "steps, in the lower right quarter of a matrix with gradients on its diagonal quarters "
            "alone, at 1 in the upper left one and at the scale below in the lower right one; mean "
            f"and standard deviation over {len(rows[0]['largest_updates'])} seeds. Gefen: "
            "factored, 8 bits."
        ),
    ),
    "two_tasks": Section(
        "Two tasks of unequal weight in one matrix",
        {
            **_RIVAL,
            "task of weight 1": _spread("heavy_losses", ".4f"),
            "task of weight {weight}": _spread("light_losses", ".4f"),
        },
        lambda rows, content: (
            "Two linear regressions, each in a diagonal quarter, of loss weight 1 and "
            f"{rows[0]['weight']:g}: squared error after {rows[0]['steps']} steps at a learning "
            f"rate of {rows[0]['lr']:g} (about 1 at the start), mean and standard deviation over "
            f"{len(rows[0]['light_losses'])} seeds. Gefen: factored, 8 bits."
        ),
    ),
    "drifts": Section(
        "Second moment of a bfloat16 parameter against float64",
        {
            "second moment": _key("second_moment"),
            "gradients": _key("gradients"),
            "steps": _key("steps", ","),
            "largest relative error": _key("largest_relative_error", ".1e"),
        },
    ),
    "model_states": Section(
        "State of whole models, created on the meta device",
        {
            "model": _key("model"),
            "parameters": _key("parameters", ","),
            **_OPTION,
            "state bytes": _key("created_bytes", ","),
            "closed form": _agreement,
            "B/param": _key("bytes_per_parameter", ".4f"),
        },
    ),
}
