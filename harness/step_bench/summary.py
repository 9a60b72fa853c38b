"""From the results of several processes to one table. Needs neither torch nor scipy."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

RATIO = "ratio_to_reference"
# How one number comes from the processes: what has to be built is built in the first of them.
_MEDIANS = ("first_step_seconds", "roofline_percent")
_LARGEST = ("build_seconds", "first_step_transient_bytes", "step_transient_bytes")
_EQUAL = ("optimizer_state_bytes", "gradient_reads", "bytes_moved")


# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom: the GPU check, which uses
# them too, has no scipy.
T_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of independent values; infinite for fewer than two."""
    freedom = len(values) - 1
    if freedom < 1:
        return -math.inf, math.inf
    # Above 30 two terms of the Cornish-Fisher expansion are exact to four digits.
    expansion = 1.95996 + 2.37227 / freedom + 2.8225 / freedom**2
    quantile = T_975[freedom - 1] if freedom <= len(T_975) else expansion
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float]
) -> tuple[float, float, float]:
    """Geometric mean of paired ratios and its 95 % interval, from the t interval of their logs."""
    logs = [math.log(a / b) for a, b in zip(numerators, denominators, strict=True)]
    low, high = t_interval(logs)
    return math.exp(statistics.fmean(logs)), math.exp(low), math.exp(high)


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
