"""Time in tables: parts of a step, ratios to the baseline, start-up, energy, operations."""

from typing import Any

import pandas as pd

from reports.load import BASELINE
from reports.pairing import COMPARED
from reports.statistics import ratio_interval
from reports.style import conditions, styles
from reports.text import DASH, TIMES, digits, missing, ms_text, number_text
from reports.values import baseline_variant, metric, words

PANEL = ["task", "model", "seq_len", "precision"]
SEEDS = ("model_seed", "data_seed")
Timed = dict[Any, tuple[float, str]]  # seconds and id by seeds
LEAST = 5  # processes for an interval
STARTUP = ("process", "import", "data", "model")
TIMED = (
    *("step_median_seconds", "step_p10_seconds", "step_p90_seconds", "first_step_seconds"),
    *("forward_backward_median_seconds", "kernel_build_seconds", "tokens_per_second"),
    *("energy_joules", "model_flops_per_step", "optimizer_flops_per_step"),
)
STARTED = (
    *(f"startup_{name}_seconds" for name in STARTUP),
    *("startup_seconds", "kernel_build_seconds", "meter_seconds", "meter_share"),
)


def ratios(runs: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """Median step time over the baseline's, paired by seed within one condition.

    Columns: the condition, variant, optimizer, ratio (geometric mean), lower, upper (95 % t
    interval on the logs; nan below five processes), n, ids.
    """
    found: list[dict[str, Any]] = []
    needed = [*PANEL, *COMPARED[:3], "optimizer", "variant", "status", "final_eval_loss"]
    usable = (runs["status"] == "done") & (metric(runs, "step_median_seconds") > 0)
    timed = runs.loc[usable, [*needed, *SEEDS, "step_median_seconds", "id"]]
    for group in conditions(timed, [*PANEL, *COMPARED[:3]]) if not timed.empty else []:
        name = baseline_variant(group, baseline)
        times = by_seed(group)
        for variant, optimizer in dict(
            zip(group["variant"], group["optimizer"], strict=True)
        ).items():
            row = ratio(times[variant], times[name]) if name not in (None, variant) else {}
            if row:
                keys = {key: group[key].iloc[0] for key in PANEL}
                found.append({**keys, "optimizer": optimizer, "variant": variant, **row})
    columns = [*PANEL, "optimizer", "variant", "ratio", "lower", "upper", "n", "ids"]
    return pd.DataFrame(found, columns=columns)


def by_seed(group: pd.DataFrame) -> dict[Any, Timed]:
    """Median step time and id of each cell by variant and seeds."""
    found: dict[Any, Timed] = {}
    columns = [group[name] for name in ("variant", *SEEDS, "step_median_seconds", "id")]
    for variant, model_seed, data_seed, seconds_, cell in zip(*columns, strict=True):
        found.setdefault(variant, {}).setdefault((model_seed, data_seed), (seconds_, cell))
    return found


def ratio(mine: Timed, other: Timed) -> dict[str, Any]:
    """The ratio paired by seeds; empty where no seed is shared."""
    shared = [seeds for seeds in mine if seeds in other]
    if not shared:
        return {}
    times, others = [mine[seeds][0] for seeds in shared], [other[seeds][0] for seeds in shared]
    stat = ratio_interval(times, others)
    enough = stat.n >= LEAST
    return {
        "ratio": stat.estimate,
        "lower": stat.lower if enough else float("nan"),
        "upper": stat.upper if enough else float("nan"),
        "n": stat.n,
        "ids": tuple(part[seeds][1] for part in (mine, other) for seeds in shared),
    }


def speed_view(runs: pd.DataFrame) -> pd.DataFrame:
    """Medians over finished cells in human units, a row a condition and variant."""
    looks, table = styles(runs), ratios(runs)
    keys = [*PANEL, "variant"]
    by = {tuple(row[key] for key in keys): row for row in table.to_dict("records")}
    middles = medians(runs, keys, TIMED)
    rows = []
    for key, cells in runs.groupby(keys, sort=False, dropna=False):
        task, model, seq_len, precision, variant = key
        middle = middles.get(key, dict.fromkeys(TIMED, float("nan")))
        line: dict[str, Any] = {"optimizer": looks[str(variant)].label, "task": task}
        line |= {"model": model, "seq": seq_len, "precision": precision, "n": counted(cells)}
        line |= step_words(middle)
        line |= {f"{TIMES} AdamW": ratio_text(by.get(key))}
        line |= {
            "tokens/s": number_text(middle["tokens_per_second"], 0),
            "energy J": energy(middle["energy_joules"], cells),
            "model FLOP/step": power_of_ten(middle["model_flops_per_step"]),
            "optimizer FLOP/step": power_of_ten(middle["optimizer_flops_per_step"]),
        }
        rows.append(line)
    return pd.DataFrame(rows)


def medians(
    runs: pd.DataFrame, keys: list[str], names: tuple[str, ...]
) -> dict[Any, dict[str, float]]:
    """Medians of metrics over the finished cells of each group; nan where no cell has one."""
    done = runs["status"] == "done"
    table = pd.DataFrame({name: metric(runs, name) for name in names}).loc[done]
    grouped = table.groupby([runs.loc[done, key] for key in keys], dropna=False).median()
    return {key: {str(k): float(v) for k, v in row.items()} for key, row in grouped.iterrows()}


def step_words(middle: dict[str, float]) -> dict[str, str]:
    """Optimizer step, its spread, forward and backward, the first step."""
    low, high = middle["step_p10_seconds"], middle["step_p90_seconds"]
    return {
        "step ms": ms_text(middle["step_median_seconds"]),
        "p10 to p90": DASH if missing(low) else f"{ms_text(low)} to {ms_text(high)}",
        "fwd+bwd ms": ms_text(middle["forward_backward_median_seconds"]),
        "first step ms": ms_text(middle["first_step_seconds"]),
        "kernels s": seconds(middle["kernel_build_seconds"]),
    }


def counted(cells: pd.DataFrame) -> str:
    """How many cells finished, and how the others ended: 4, 1 oom."""
    rest = cells.loc[cells["status"] != "done", "status"].value_counts()
    words_of = [f"{count} {status}" for status, count in rest.items()]
    return ", ".join([str((cells["status"] == "done").sum()), *words_of])


def ratio_text(row: dict[Any, Any] | None) -> str:
    """4.97 (4.51 to 5.47); without an interval below five processes."""
    if row is None:
        return DASH
    text = digits(row["ratio"])
    if missing(row["lower"]):
        return text
    return f"{text} ({digits(row['lower'])} to {digits(row['upper'])})"


def energy(value: float, cells: pd.DataFrame) -> str:
    """Joules with the counter they come from; a dash where the machine has none."""
    if missing(value):
        return DASH
    methods = " / ".join(dict.fromkeys(text for text in words(cells, "energy_method") if text))
    return f"{digits(value)} ({methods})" if methods else digits(value)


def power_of_ten(value: float) -> str:
    """1.2e9, a dash where missing."""
    return DASH if missing(value) else f"{value:.2e}".replace("e+0", "e").replace("e+", "e")


def seconds(value: float) -> str:
    """Seconds with two decimals below ten."""
    return DASH if missing(value) else number_text(value, 2 if value < 10 else 1)


def startup_view(runs: pd.DataFrame) -> pd.DataFrame:
    """Seconds before the first step and in meters, medians over finished cells by optimizer."""
    rows, looks = [], styles(runs)
    done = runs[runs["status"] == "done"]
    middles = medians(done, ["task", "variant"], STARTED)
    for (task, variant), cells in done.groupby(["task", "variant"], sort=False):
        middle = middles[task, variant]
        line = {"optimizer": looks[str(variant)].label, "task": task, "n": str(len(cells))}
        line |= {f"{name} s": seconds(middle[f"startup_{name}_seconds"]) for name in STARTUP}
        line |= {
            "start-up s": seconds(middle["startup_seconds"]),
            "kernels s": seconds(middle["kernel_build_seconds"]),
            "meters s": seconds(middle["meter_seconds"]),
            "meters, % of training": percent(middle["meter_share"]),
        }
        rows.append(line)
    return pd.DataFrame(rows)


def percent(share: float) -> str:
    """A share as percent, a dash where missing."""
    return DASH if missing(share) else f"{digits(100 * share)}"
