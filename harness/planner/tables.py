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
from harness.planner.plan import CARDS_GIB, MOST_RANKS, Largest, Plan

PLAN_NOTE = (
    "params, grads, state: exact (shapes, closed forms). activ.: estimated, {}. comm.: DDP's "
    "buckets or what FSDP gathers. step tmp: temporary bytes of a step, a dash where the "
    "optimizer's entry states none; then they are not in the peak. state: a dash where gradients "
    "decide it, and under FSDP where the optimizer does not step shards. The peak is below the "
    "sum: gradients come as activations go. recompute: activation checkpointing of every layer. "
    "Not in the plan: the scratch of kernels, which depends on the processor."
)
CHECK_NOTE = (
    "Error = (planned - measured) / measured. Not in the plan: holes in the heap of a CPU process, "
    "which cells with task.exact_peaks=true do not have, and temporaries of optimizers that state "
    "none (harness.planner.check)."
)


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
    header = ["optimizer", "layout", "recompute"]
    header += ["params", "grads", "state", "comm.", "activ.", "step tmp", "peak"]
    rows = []
    for item in plan.estimates:
        layout = item.layout if item.ranks == 1 else f"{item.layout} x {item.ranks}"
        held = (item.parameter_bytes, item.gradient_bytes, item.optimizer_state_bytes)
        passing = (item.communication_bytes, item.activation_bytes, item.step_transient_bytes)
        numbers = map(gib, (*held, *passing, item.peak_bytes))
        rows.append([item.optimizer, layout, _yes(item.checkpointing), *numbers])
    cards: dict[tuple[str, bool], list[str]] = {}
    for fit in plan.fits:  # in the order of CARDS_GIB
        number = "-" if fit.cards is None else str(fit.cards)
        cards.setdefault((fit.optimizer, fit.checkpointing), []).append(number)
    fits = [[name, _yes(again), *row] for (name, again), row in cards.items()]
    return f"""\
{plan.model}: {plan.parameters:,} parameters; {plan.micro_batch} x {plan.seq_len} \
tokens a rank, {plan.precision}. GiB of one rank:

{table(header, rows, 3)}

Fewest cards (FSDP over them, at most {MOST_RANKS}; a dash: not even these, or no \
FSDP), {plan.headroom_gib:g} GiB of each free:

{table(["optimizer", "recompute", *(f"{card} GiB" for card in CARDS_GIB)], fits, 2)}

{_fold(PLAN_NOTE.format(plan.activation_method))}"""


def largest_text(title: str, answers: list[Largest]) -> str:
    """One answer for each optimizer, without and with recomputation."""
    rows = [
        [item.optimizer, _yes(item.checkpointing), str(item.value or "-"), gib(item.peak_bytes)]
        for item in answers
    ]
    return f"{title}\n\n{table(['optimizer', 'recompute', 'largest', 'peak GiB'], rows, 2)}"


def check_text(comparisons: list[Comparison]) -> str:
    """The table of errors, and what it amounts to."""
    header = ["optimizer", "model", "precision", "device", "tokens", "state MB", "error"]
    header += ["peak MB", "planned", "error", "verdict"]
    rows = []
    for item in comparisons:
        planned = item.predicted_peak_bytes
        row = [item.optimizer, item.model, item.precision, item.device, str(item.tokens)]
        row += [f"{item.state_bytes / 1e6:.1f}", _percent(item.state_error)]
        row += [f"{item.peak_bytes / 1e6:.0f}", "-" if planned is None else f"{planned / 1e6:.0f}"]
        rows.append([*row, _percent(item.peak_error), item.verdict])
    within = sum(item.verdict == "ok" for item in comparisons)
    judged = sum(item.verdict not in UNJUDGED for item in comparisons)
    note = (
        f"{within} of {judged} judged cells are within {STATE_TOLERANCE:.1%} for the state and, "
        f"for the peak, {PEAK_TOLERANCE['cuda']:.0%} on CUDA or {PEAK_TOLERANCE['cpu']:.0%} of the "
        f"increment on a CPU from {LEAST_CPU_BYTES / 1e6:.0f} MB on. {CHECK_NOTE}"
    )
    return f"{table(header, rows, 4)}\n\n{_fold(note)}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"


def _fold(text: str) -> str:
    return textwrap.fill(text, 98)
