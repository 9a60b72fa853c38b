"""Part speed: the optimizer step of AdamW (fused, foreach, loop) against Gefen.

Ratios rest on the medians of independent processes; in each process the candidates take turns.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import store
from harness.gpu.common import Deadline, PartResult, child_environment
from harness.gpu.intervals import ratio_interval
from harness.gpu.step_timing import StepSettings
from harness.groups import load_group

SUBJECT = "gefen"
ADAMW_MODES = {
    "adamw_fused": {"fused": True, "foreach": False},
    "adamw_foreach": {"fused": False, "foreach": True},
    "adamw_loop": {"fused": False, "foreach": False},
}
PRECISIONS = ("fp32", "bf16_pure")
PROCESSES = 5


def candidates() -> dict[str, dict[str, Any]]:
    """Optimizer groups by shown name; the three AdamW differ in torch's implementation only."""
    adamw = load_group("optimizer", "adamw")
    options = adamw.get("options") or {}
    modes = {name: {**adamw, "options": {**options, **mode}} for name, mode in ADAMW_MODES.items()}
    return {**modes, SUBJECT: load_group("optimizer", SUBJECT)}


def speed_settings(precision: str, device: str = "cuda", **values: Any) -> StepSettings:
    """Settings of one process for GPT-2 124M, or what `values` replace of them."""
    defaults = {"model": load_group("model", "gpt2_124m"), "candidates": candidates()}
    return StepSettings(**{**defaults, "precision": precision, "device": device, **values})


def run_process(settings: StepSettings, stem: Path, timeout: float) -> dict[str, Any] | None:
    """Measure in a fresh process; None when it failed or ran out of time (see its log)."""
    job, result = stem.with_suffix(".settings.json"), stem.with_suffix(".json")
    store.write_json_atomic(job, asdict(settings))
    with stem.with_suffix(".log").open("w") as log:
        try:
            subprocess.run(
                [sys.executable, "-m", "harness.gpu.step_timing", str(job), str(result)],
                env=child_environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=True,
            )
        except subprocess.SubprocessError as error:
            log.write(f"\n{error}\n")
            return None
    return dict(store.read_json(result))


def aggregate(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over processes, roofline and the ratio to the subject, for one precision."""
    medians = {
        name: [r["candidates"][name]["step_median_seconds"] for r in results]
        for name in results[0]["candidates"]
    }
    table: dict[str, Any] = {}
    for name, seconds in medians.items():
        entries = [r["candidates"][name] for r in results]
        ratio, low, high = ratio_interval(seconds, medians[SUBJECT])
        table[name] = {
            "step_median_seconds": statistics.median(seconds),
            "process_median_seconds": seconds,
            "first_step_seconds": statistics.median(e["first_step_seconds"] for e in entries),
            "roofline_percent": statistics.median(e["roofline_percent"] for e in entries),
            "bytes_moved": entries[0]["bytes_moved"],
            "optimizer_state_bytes": entries[0]["optimizer_state_bytes"],
            "ratio_to_subject": ratio,
            "ratio_interval_95": [low, high],
        }
    bandwidth = statistics.median(r["copy_bytes_per_second"] for r in results)
    return {"processes": len(results), "copy_bytes_per_second": bandwidth, "candidates": table}


def speed_markdown(tables: dict[str, dict[str, Any]]) -> str:
    """One table a precision."""
    lines = ["# Optimizer step on synthetic gradients\n"]
    for precision, table in tables.items():
        lines += [
            f"## {precision}: {table['processes']} processes, copy bandwidth "
            f"{table['copy_bytes_per_second'] / 1e9:,.1f} GB/s\n",
            "| optimizer | step, ms | first step, ms | bytes moved | % of roofline "
            f"| times {SUBJECT} (95 % interval) |",
            "|---|---|---|---|---|---|",
        ]
        for name, entry in table["candidates"].items():
            low, high = entry["ratio_interval_95"]
            ratio = f"{entry['ratio_to_subject']:.3f}"
            interval = "" if name == SUBJECT else f" ({low:.3f} to {high:.3f})"
            lines.append(
                f"| {name} | {1e3 * entry['step_median_seconds']:.3f} "
                f"| {1e3 * entry['first_step_seconds']:.1f} | {entry['bytes_moved']:,} "
                f"| {entry['roofline_percent']:.1f} | {ratio}{interval} |"
            )
        lines.append("")
    lines.append(
        "Bytes moved: gradients read once, parameters and state read and written once. A step "
        "starts on an idle device, so it contains the time to launch its kernels.\n"
    )
    return "\n".join(lines)


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
    tables = {precision: aggregate(found) for precision, found in results.items() if found}
    complete = all(len(found) == processes for found in results.values())
    facts = {"failed_processes": failures, "precisions": tables}
    return PartResult("speed", complete and not failures, facts, speed_markdown(tables))
