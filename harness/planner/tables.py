"""The answers of `gefen-plan` as text."""

import textwrap
from collections.abc import Sequence

from harness.planner.check import (
    LEAST_CPU_BYTES,
    PEAK_TOLERANCE,
    STATE_TOLERANCE,
    UNJUDGED,
    Comparison,
)
from harness.planner.config import GIB
from harness.planner.limits import Largest
from harness.planner.plan import CARDS_GIB, MOST_RANKS, Plan


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Columns under their names; the first `words` to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def gib(number: int | None) -> str:
    """Bytes in GiB with three figures; a dash where they are not known."""
    if number is None:
        return "-"
    value = number / GIB
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def plan_text(plan: Plan) -> str:
    """What one model takes, and on which cards it fits."""
    rows = [
        [
            item.optimizer,
            item.layout if item.ranks == 1 else f"{item.layout} x {item.ranks}",
            "yes" if item.checkpointing else "no",
            *map(
                gib,
                (
                    item.parameter_bytes,
                    item.gradient_bytes,
                    item.optimizer_state_bytes,
                    item.communication_bytes,
                    item.activation_bytes,
                    item.step_transient_bytes,
                    item.peak_bytes,
                ),
            ),
        ]
        for item in plan.estimates
    ]
    numbers = ("params", "grads", "state", "comm.", "activ.", "step tmp", "peak")
    header = ["optimizer", "layout", "recompute", *numbers]
    cards = [
        [name, "yes" if again else "no", *(_cards(plan, name, again, card) for card in CARDS_GIB)]
        for name in dict.fromkeys(item.optimizer for item in plan.fits)
        for again in (False, True)
    ]
    return "\n".join(
        [
            f"{plan.model}: {plan.parameters:,} parameters; {plan.micro_batch} x {plan.seq_len} "
            f"tokens a rank, {plan.precision}. GiB of one rank:",
            "",
            table(header, rows, 3),
            "",
            f"Fewest cards (FSDP over them, at most {MOST_RANKS}; a dash: not even these, or no "
            f"FSDP), {plan.headroom_gib:g} GiB of each free:",
            "",
            table(["optimizer", "recompute", *(f"{card} GiB" for card in CARDS_GIB)], cards, 2),
            "",
            _fold(
                "params, grads, state: exact (shapes, closed forms). activ.: estimated, "
                f"{plan.activation_method}. comm.: DDP's buckets or what FSDP gathers. step tmp: "
                "temporary bytes of a step, a dash where the optimizer's entry states none; then "
                "they are not in the peak. state: a dash where gradients decide it, and under FSDP "
                "where the optimizer does not step shards. The peak is below the sum: gradients "
                "come as activations go. recompute: activation checkpointing of every layer."
            ),
        ]
    )


def largest_text(title: str, answers: list[Largest]) -> str:
    """One answer for each optimizer, without and with recomputation."""
    rows = [
        [
            item.optimizer,
            "yes" if item.checkpointing else "no",
            "-" if item.value is None else str(item.value),
            gib(item.peak_bytes),
        ]
        for item in answers
    ]
    return f"{title}\n\n{table(['optimizer', 'recompute', 'largest', 'peak GiB'], rows, 2)}"


def check_text(comparisons: list[Comparison]) -> str:
    """The table of errors, and what it amounts to."""
    rows = [
        [
            item.optimizer,
            item.model,
            item.precision,
            item.device,
            str(item.tokens),
            f"{item.state_bytes / 1e6:.1f}",
            _percent(item.state_error),
            f"{item.peak_bytes / 1e6:.0f}",
            "-" if item.predicted_peak_bytes is None else f"{item.predicted_peak_bytes / 1e6:.0f}",
            _percent(item.peak_error),
            item.verdict,
        ]
        for item in comparisons
    ]
    numbers = ("tokens", "state MB", "error", "peak MB", "planned", "error", "verdict")
    header = ["optimizer", "model", "precision", "device", *numbers]
    within = sum(item.verdict == "ok" for item in comparisons)
    judged = sum(item.verdict not in UNJUDGED for item in comparisons)
    return "\n".join(
        [
            table(header, rows, 4),
            "",
            _fold(
                f"{within} of {judged} judged cells are within {STATE_TOLERANCE:.1%} for the "
                f"state and, for the peak, {PEAK_TOLERANCE['cuda']:.0%} on CUDA or "
                f"{PEAK_TOLERANCE['cpu']:.0%} of the increment on a CPU from "
                f"{LEAST_CPU_BYTES / 1e6:.0f} MB on. Error = (planned - measured) / measured. "
                "Not in the plan: holes in the heap of a CPU process, which cells with "
                "task.exact_peaks=true do not have, and temporaries of optimizers that state none "
                "(harness.planner.check)."
            ),
        ]
    )


def _cards(plan: Plan, optimizer: str, checkpointing: bool, card: int) -> str:
    for item in plan.fits:
        if (item.optimizer, item.checkpointing, item.card_gib) == (optimizer, checkpointing, card):
            return "-" if item.cards is None else str(item.cards)
    return "-"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"


def _fold(text: str) -> str:
    return textwrap.fill(text, 98)
