"""The table of one condition, as aligned text and as Markdown."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from harness.step_bench.summary import RATIO

MIB = 2**20
EMPTY = "-"
NOTE = (
    "Bytes moved are counted, not measured: gradients read once (twice where a factored second "
    "moment needs its sums first), parameters and state read and written once. The roofline is "
    "the copy bandwidth of the same process. A step starts on an idle device with cold caches, so "
    "it contains the time to launch its kernels. Transient: the peak of a step beyond what it "
    "leaves allocated."
)


def headings(reference: str) -> list[str]:
    """Titles of the columns of `rows`."""
    return [
        "optimizer",
        "step, ms (p10 to p90)",
        f"times {reference} (95 % interval)",
        "B/param moved",
        "% of roofline",
        "first step, ms",
        "build, s",
        "transient, MiB (first)",
        "state, B/param",
    ]


def rows(
    table: dict[str, Any], parameters: int | None, reference: str, ratio_key: str = RATIO
) -> list[list[str]]:
    """One row of texts for each candidate of a summary of processes."""
    found = []
    for name, facts in table["candidates"].items():
        low, high = ms(facts.get("step_p10_seconds")), ms(facts.get("step_p90_seconds"))
        first = number(facts.get("first_step_transient_bytes"), 1, MIB)
        state = facts.get("optimizer_state_bytes")
        found.append(
            [
                name,
                f"{ms(facts['step_median_seconds'])} ({low} to {high})",
                EMPTY if name == reference else ratio_text(facts, ratio_key),
                number(facts.get("bytes_moved_per_parameter"), 2),
                number(facts.get("roofline_percent"), 1),
                ms(facts.get("first_step_seconds")),
                number(facts.get("build_seconds"), 2),
                f"{number(facts.get('step_transient_bytes'), 1, MIB)} ({first})",
                number(state / parameters if state is not None and parameters else None, 3),
            ]
        )
    return found


def ratio_text(facts: dict[str, Any], ratio_key: str = RATIO) -> str:
    """The ratio with its interval; the interval is left out where one process gives none."""
    ratio = facts.get(ratio_key)
    low, high = facts.get("ratio_interval_95") or (None, None)
    if ratio is None or low is None or high is None or math.isinf(high):
        return number(ratio, 3)
    return f"{ratio:.3f} ({low:.3g} to {high:.3g})"


def ms(seconds: float | None) -> str:
    """Seconds as milliseconds, three significant digits or more."""
    if seconds is None:
        return EMPTY
    value = 1000 * seconds
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def number(value: float | None, decimals: int, unit: float = 1) -> str:
    """Fixed decimals, a dash where there is none."""
    return EMPTY if value is None else f"{value / unit:,.{decimals}f}"


def markdown(titles: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def aligned(titles: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first flush left, titles folded at their blanks to save width."""
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    heads = [
        textwrap.wrap(title, max(width, *map(len, title.split())))
        for title, width in zip(titles, widths, strict=True)
    ]
    height = max(map(len, heads))
    top = zip(*([""] * (height - len(head)) + head for head in heads), strict=True)
    lines = [*top, *body]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    return "\n".join([*text[:height], "-" * len(text[0]), *text[height:]])
