"""Time in tables: parts of a step, ratios to the baseline, start-up, energy, operations."""

from typing import Any

import numpy as np
import pandas as pd

from reports.data.labels import labels
from reports.data.load import BASELINE
from reports.data.pairing import COMPARED
from reports.data.report import Report
from reports.data.text import DASH, TIMES, digits, missing, ms_text, number_text
from reports.data.turns import not_in_turns
from reports.data.values import baseline_variant, conditions, metric, setting, words
from reports.stats.intervals import ratio_interval
from reports.tables.registry import Brief, Grid, Raw, Section

SPEED = Section("speed", "Speed", 40)
TIMES_NOTE = (
    "Medians over finished cells. A dash: not recorded, or no counter on this machine. In brackets "
    "95 % intervals over 5 or more processes, only where the two optimizers took turns; elsewhere "
    "a change of the machine's load would count for one side only."
)
STARTUP_NOTE = (
    "Medians over finished cells. Process, import, data and model are parts of start-up; kernels "
    "are built apart from it. Older records hold the total alone."
)
IN_BRIEF = (
    *("optimizer", "task", "model", "seq", "precision", "n", "step ms", "p10 to p90"),
    *("fwd+bwd ms", "first step ms", f"{TIMES} AdamW", "tokens/s"),
)
PANEL = ["task", "model", "seq_len", "precision"]
SEEDS = ("model_seed", "data_seed")
STEP, CLOCK = "step_median_seconds", ("started_utc", "finished_utc")
SIZES = ("micro_batch", "grad_accumulation")
Sides = dict[tuple[Any, ...], list[dict[Any, Any]]]  # cells by seeds
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


def csv(report: Report) -> dict[str, pd.DataFrame]:
    """step_ratios.csv."""
    return {"step_ratios": ratios(report.plain, report.baseline)}


def grids(report: Report, raw: Raw) -> list[Grid]:
    """Steps and throughput; what came before the first step."""
    plain, names = report.plain, labels(report.plain)
    if plain[STEP].isna().all():
        return []
    timed = plain[plain[STEP].notna() | (plain["status"] != "done")]
    view, brief = speed_view(timed, raw["step_ratios"], names), Brief("Speed", IN_BRIEF)
    started = startup_view(plain, names)
    return [
        Grid(SPEED, "Steps and throughput", TIMES_NOTE, view, brief=brief),
        Grid(SPEED, "Before the first step", STARTUP_NOTE, started, place=1, folded=True),
    ]


def ratios(runs: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """Median step time over the baseline's, paired by seed within one condition.

    Columns: the condition, variant, optimizer, ratio (geometric mean), lower, upper (95 % t
    interval on the logs; nan below five pairs, where a side ran several cells of one seed, and
    where the processes did not take turns, which `why_no_interval` says), n (seeds), ids.
    """
    found: list[dict[str, Any]] = []
    sizes = {key: pd.to_numeric(setting(runs, key)).fillna(1) for key in SIZES}
    needed = [*PANEL, *COMPARED[:3], "ranks", "threads", "optimizer", "variant", "status", *CLOCK]
    usable = (runs["status"] == "done") & (metric(runs, STEP) > 0)
    timed = runs.loc[usable, [*needed, "final_eval_loss", *SEEDS, STEP, "id"]].assign(**sizes)
    keys = [*PANEL, *COMPARED[:3], "ranks", "threads", *SIZES]
    for group in conditions(timed, keys) if not timed.empty else []:
        name = baseline_variant(group, baseline)
        sides = by_seeds(group)
        for variant, cells in sides.items():
            row = ratio(cells, sides[name]) if name not in (None, variant) else {}
            if row:
                first = next(iter(cells.values()))[0]
                same = {key: first[key] for key in [*PANEL, *SIZES, "threads", "optimizer"]}
                found.append({**same, "variant": variant, **row})
    columns = [*PANEL, *SIZES, "threads", "optimizer", "variant", "ratio", "lower", "upper", "n"]
    return pd.DataFrame(found, columns=[*columns, "why_no_interval", "ids"])


def by_seeds(group: pd.DataFrame) -> dict[Any, Sides]:
    """The cells of each variant by their seeds."""
    found: dict[Any, Sides] = {}
    for row in group.to_dict("records"):
        seeds = found.setdefault(row["variant"], {})
        seeds.setdefault(tuple(row[key] for key in SEEDS), []).append(row)
    return found


def ratio(mine: Sides, other: Sides) -> dict[str, Any]:
    """The ratio paired by seeds, cells of one seed by their median; empty without a shared seed."""
    shared = [seeds for seeds in mine if seeds in other]
    if not shared:
        return {}
    own, base = (
        [float(np.median([cell[STEP] for cell in side[seeds]])) for seeds in shared]
        for side in (mine, other)
    )
    stat = ratio_interval(own, base)
    pairs = [(a, b) for seeds in shared for a in mine[seeds] for b in other[seeds]]
    why = ""
    if stat.n < LEAST:
        why = f"fewer than {LEAST} pairs"
    elif len(pairs) > len(shared):
        why = "several cells have the same seeds"
    else:
        turns = [a | {f"{key}_base": b[key] for key in ("id", *CLOCK)} for a, b in pairs]
        why = not_in_turns(turns)
    return {
        "ratio": stat.estimate,
        "lower": float("nan") if why else stat.lower,
        "upper": float("nan") if why else stat.upper,
        "n": stat.n,
        "why_no_interval": why,
        "ids": tuple(dict.fromkeys([*(a["id"] for a, _ in pairs), *(b["id"] for _, b in pairs)])),
    }


def speed_view(runs: pd.DataFrame, table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """Medians over finished cells and their ratios (`table`) in human units, a row a variant."""
    keys = [*PANEL, "variant"]
    by: dict[Any, list[dict[Any, Any]]] = {}
    for row in table.to_dict("records"):
        by.setdefault(tuple(row[key] for key in keys), []).append(row)
    middles = medians(runs, keys, TIMED)
    rows = []
    for key, cells in runs.groupby(keys, sort=False, dropna=False):
        task, model, seq_len, precision, variant = key
        middle = middles.get(key, dict.fromkeys(TIMED, float("nan")))
        line: dict[str, Any] = {"optimizer": names[str(variant)], "task": task}
        line |= {"model": model, "seq": seq_len, "precision": precision, "n": counted(cells)}
        line |= step_words(middle)
        line |= {f"{TIMES} AdamW": ratio_text(by.get(key, []))}
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


def ratio_text(rows: list[dict[Any, Any]]) -> str:
    """4.97 (4.51 to 5.47), without an interval where there is none; one for each batch size."""
    texts = []
    for row in rows:
        known = not missing(row["lower"])
        bounds = f" ({digits(row['lower'])} to {digits(row['upper'])})" if known else ""
        texts.append(digits(row["ratio"]) + bounds)
    return "; ".join(texts) or DASH


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


def startup_view(runs: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """Seconds before the first step and in meters, medians over finished cells by optimizer."""
    rows = []
    done = runs[runs["status"] == "done"]
    middles = medians(done, ["task", "variant"], STARTED)
    for (task, variant), cells in done.groupby(["task", "variant"], sort=False):
        middle = middles[task, variant]
        line = {"optimizer": names[str(variant)], "task": task, "n": str(len(cells))}
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
