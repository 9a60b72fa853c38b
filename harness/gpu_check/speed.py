"""Part speed: the optimizer step of AdamW (fused, foreach, loop) against Gefen.

A short form of `gefen-step` for GPT-2 124M. Ratios rest on the medians of independent processes;
in each process the candidates take turns.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.config.groups import load_group
from harness.gpu_check.common import Deadline, PartResult
from harness.step_bench import plan
from harness.step_bench.plan import StepSettings
from harness.step_bench.process import run_process
from harness.step_bench.summary import summarize_processes
from harness.step_bench.table import NOTE, headings, markdown, rows

SUBJECT = "gefen"
ADAMW_MODES = ("adamw_fused", "adamw_foreach", "adamw_loop")
PRECISIONS = ("fp32", "bf16_pure")
PROCESSES = 5
RATIO = "ratio_to_subject"


def speed_settings(precision: str, device: str = "cuda", **values: Any) -> StepSettings:
    """Settings of one process for GPT-2 124M, or what `values` replace of them."""
    chosen = plan.choose((*ADAMW_MODES, SUBJECT))
    defaults = {
        "model": load_group("model", "gpt2_124m"),
        "candidates": {candidate.name: candidate.values for candidate in chosen},
        "gradient_reads": {candidate.name: candidate.gradient_reads for candidate in chosen},
    }
    return StepSettings(**{**defaults, "precision": precision, "device": device, **values})


def speed_markdown(tables: dict[str, dict[str, Any]], parameters: int | None) -> str:
    """One table a precision."""
    lines = ["# Optimizer step on synthetic gradients\n"]
    for precision, table in tables.items():
        lines += [
            f"## {precision}: {table['processes']} processes, copy bandwidth "
            f"{table['copy_bytes_per_second'] / 1e9:,.1f} GB/s\n",
            markdown(headings(SUBJECT), rows(table, parameters, SUBJECT, RATIO)),
            "",
        ]
    return "\n".join([*lines, NOTE, ""])


def run_speed(
    work: Path,
    deadline: Deadline,
    say: Callable[[str], None],
    make: Callable[[str], StepSettings] = speed_settings,
    processes: int = PROCESSES,
) -> PartResult:
    """Time in `processes` fresh processes for each precision, alternating, while time lasts."""
    results: dict[str, list[dict[str, Any]]] = {precision: [] for precision in PRECISIONS}
    failures, longest, planned = 0, 0.0, processes * len(PRECISIONS)
    for number in range(planned):
        precision = PRECISIONS[number % len(PRECISIONS)]
        if not deadline.allows(1.2 * longest):
            say(f"  out of time after {number} of {planned} processes")
            break
        start = time.monotonic()
        stem = work / f"process_{number // len(PRECISIONS)}_{precision}"
        result = run_process(make(precision), stem, deadline.remaining())
        longest = max(longest, time.monotonic() - start)
        say(f"  process {number + 1}/{planned} {precision}: {'done' if result else 'failed'}")
        failures += result is None
        if result is not None:
            results[precision].append(result)
    tables = {
        precision: summarize_processes(found, SUBJECT, RATIO)
        for precision, found in results.items()
        if found
    }
    complete = all(len(found) == processes for found in results.values())
    facts = {"failed_processes": failures, "precisions": tables}
    counts = [found[0].get("parameters") for found in results.values() if found]
    page = speed_markdown(tables, counts[0] if counts else None)
    return PartResult("speed", complete and not failures, facts, page)
