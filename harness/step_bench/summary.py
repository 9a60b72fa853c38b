"""From the results of several processes to one table. Needs neither torch nor scipy."""

import statistics
from typing import Any

from harness.step_bench.intervals import ratio_interval

RATIO = "ratio_to_reference"
# How one number comes from the processes: what has to be built is built in the first of them.
_MEDIANS = ("first_step_seconds", "roofline_percent")
_LARGEST = ("build_seconds", "first_step_transient_bytes", "step_transient_bytes")
_EQUAL = ("optimizer_state_bytes", "gradient_reads", "bytes_moved")


def summarize_processes(
    results: list[dict[str, Any]], reference: str, ratio_key: str = RATIO
) -> dict[str, Any]:
    """Facts of every candidate that all processes measured.

    Time is the median of the processes' medians, with p10 and p90 over all steps of all
    processes; the ratio to the candidate `reference` is the geometric mean over processes with
    its 95 % t interval on logs, unbounded for one process and None without the reference.
    """
    names = [n for n in results[0]["candidates"] if all(n in r["candidates"] for r in results)]
    medians = {
        name: [r["candidates"][name]["step_median_seconds"] for r in results] for name in names
    }
    table: dict[str, Any] = {}
    for name, seconds in medians.items():
        entries = [r["candidates"][name] for r in results]
        table[name] = _facts(entries, seconds)
        if reference in medians:
            ratio, low, high = ratio_interval(seconds, medians[reference])
            table[name] |= {ratio_key: ratio, "ratio_interval_95": [low, high]}
        if "parameters" in results[0]:
            per_parameter = entries[0]["bytes_moved"] / results[0]["parameters"]
            table[name]["bytes_moved_per_parameter"] = per_parameter
    bandwidth = statistics.median(r["copy_bytes_per_second"] for r in results)
    return {"processes": len(results), "copy_bytes_per_second": bandwidth, "candidates": table}


def failures(results: list[dict[str, Any]]) -> dict[str, str]:
    """The first error of every candidate that failed in any process."""
    found: dict[str, str] = {}
    for result in results:
        found = {**result.get("failed", {}), **found}
    return found


def _facts(entries: list[dict[str, Any]], medians: list[float]) -> dict[str, Any]:
    steps = [value for entry in entries for value in entry.get("step_seconds", ())]
    tenths = statistics.quantiles(steps, n=10, method="inclusive") if len(steps) > 1 else None
    facts: dict[str, Any] = {
        "step_median_seconds": statistics.median(medians),
        "step_p10_seconds": tenths[0] if tenths else None,
        "step_p90_seconds": tenths[-1] if tenths else None,
        "process_median_seconds": medians,
    }
    for keys, choose in ((_MEDIANS, statistics.median), (_LARGEST, max), (_EQUAL, max)):
        for key in keys:
            values = [entry[key] for entry in entries if entry.get(key) is not None]
            facts[key] = choose(values) if values else None
    return facts
