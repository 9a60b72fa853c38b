"""The figures as a page of Markdown tables."""

from collections.abc import Iterable, Sequence

from harness.robustness.figures import Drift, ModelState, Movement
from harness.robustness.scenarios import COLUMN_SCALES, STOP_AFTER


def page(
    movements: Sequence[Movement],
    movement_steps: int,
    drifts: Sequence[Drift],
    states: Sequence[ModelState],
) -> str:
    """Return the page; every number of it is in the JSON beside it."""
    scales = ", ".join(f"{scale:g}" for scale in COLUMN_SCALES)
    parts = [
        "# Robustness of Gefen\n",
        "Written by `python -m harness.robustness`; the same on every machine up to rounding.\n",
        "## Where a gradient stops, and columns of unequal scale\n",
        f"Movement: path length over {movement_steps:,} steps of elements whose gradient is zero "
        f"from step {STOP_AFTER} on, over AdamW's on the same gradients. Update RMS: over "
        f"AdamW's, for interleaved columns whose gradients are at {scales}.\n",
        *_table(
            ("second moment", "bits", "betas", "movement", f"update RMS at {scales}"),
            (
                (
                    m["second_moment"],
                    str(m["first_moment_bits"]),
                    ", ".join(map(str, m["betas"])),
                    f"{m['movement_ratio']:.3f}",
                    ", ".join(f"{ratio:.3f}" for ratio in m["update_rms_ratios"]),
                )
                for m in movements
            ),
        ),
        "\n## Second moment of a bfloat16 parameter against float64\n",
        *_table(
            ("second moment", "gradients", "steps", "largest relative error"),
            (
                (
                    d["second_moment"],
                    d["gradients"],
                    f"{d['steps']:,}",
                    f"{d['largest_relative_error']:.1e}",
                )
                for d in drifts
            ),
        ),
        "\n## State of whole models, created on the meta device\n",
        *_table(
            (
                "model",
                "parameters",
                "second moment",
                "bits",
                "state bytes",
                "closed form",
                "B/param",
            ),
            (
                (
                    s["model"],
                    f"{s['parameters']:,}",
                    s["second_moment"],
                    str(s["first_moment_bits"]),
                    f"{s['created_bytes']:,}",
                    "equal" if s["created_bytes"] == s["closed_form_bytes"] else "DIFFERS",
                    f"{s['bytes_per_parameter']:.4f}",
                )
                for s in states
            ),
        ),
    ]
    return "\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
