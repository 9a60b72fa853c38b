"""Reads what a record may lack: metrics that came later, settings; groups cells by condition."""

import math
from typing import Any

import pandas as pd

from reports.data.load import BASELINE

PANEL = ["model", "seq_len", "precision"]  # what tables and panels of figures are split by
MOST_PANELS = 4  # of one figure


def metric(runs: pd.DataFrame, *names: str) -> pd.Series:
    """The first of `names` that a cell recorded, as float64; nan where it has none of them."""
    found = pd.Series(float("nan"), index=runs.index, dtype="float64")
    for name in names:
        if name in runs:
            found = found.fillna(pd.to_numeric(runs[name], errors="coerce").astype("float64"))
    return found


def words(runs: pd.DataFrame, name: str) -> pd.Series:
    """A text of the record, empty where it has none."""
    if name not in runs:
        return pd.Series("", index=runs.index, dtype=object)
    return runs[name].map(lambda value: value if isinstance(value, str) else "").astype(object)


def setting(runs: pd.DataFrame, *path: str) -> pd.Series:
    """A value of each cell's configuration by its path of keys; None where it is absent."""

    def find(config: Any) -> Any:
        for key in path:
            config = config.get(key) if isinstance(config, dict) else None
        return config

    return pd.Series([find(config) for config in runs["config"]], index=runs.index, dtype=object)


def capped(runs: pd.DataFrame) -> pd.Series:
    """True for probes of a capacity search, which ran under a memory cap."""
    return setting(runs, "task", "memory_cap_gib").notna()


def sharded(runs: pd.DataFrame) -> pd.Series:
    """True for cells whose state FSDP cut over several ranks; byte metrics are those of rank 0."""
    several = setting(runs, "launch", "nproc").fillna(1).astype("int64") > 1
    return several & setting(runs, "launch", "strategy").eq("fsdp")


def rates(runs: pd.DataFrame) -> pd.Series:
    """The peak learning rate of each cell: `lr` x `lr_factor`."""
    factor = setting(runs, "optimizer", "lr_factor")
    return runs["lr"].astype("float64") * factor.fillna(1.0).astype("float64")


def baseline_variant(group: pd.DataFrame, baseline: str = BASELINE) -> str | None:
    """The baseline's variant of one condition; of several the one with the lowest mean loss."""
    cells = group[(group["optimizer"] == baseline) & (group["status"] == "done")]
    if cells.empty:
        return None
    losses = cells.groupby("variant", sort=False)["final_eval_loss"].mean()
    return str(losses.idxmin() if losses.notna().any() else losses.index[0])


def falls(runs: pd.DataFrame) -> pd.Series:
    """What each cell's loss fell by, nats; nan where its first evaluation read another text.

    That is over `task.eval_tokens`, the last one over `task.final_eval_tokens` where that is set:
    the difference of two texts is no fall.
    """
    wanted = pd.to_numeric(setting(runs, "task", "eval_tokens")).astype("float64")
    final = pd.to_numeric(setting(runs, "task", "final_eval_tokens")).astype("float64")
    fall = metric(runs, "initial_eval_loss") - metric(runs, "final_eval_loss")
    return fall.where(final.isna() | (final == wanted))


def fall_over_spread(runs: pd.DataFrame) -> float:
    """The mean fall of finished cells over the standard deviation of their final losses.

    nan for fewer than two cells and where any cell's fall is not known; infinite where the losses
    are equal.
    """
    done = runs[runs["status"] == "done"]
    fall, spread = falls(done).mean(skipna=False), metric(done, "final_eval_loss").std()
    if math.isnan(fall) or math.isnan(spread):
        return math.nan
    return float(fall / spread) if spread > 0 else math.copysign(math.inf, fall)


def conditions(frame: pd.DataFrame, keys: list[str]) -> list[pd.DataFrame]:
    """Groups by `keys` in order, with precisions from wide to narrow."""
    order = {name: index for index, name in enumerate(("fp32", "bf16_mixed", "bf16_pure"))}

    def place(group: pd.DataFrame) -> tuple[Any, ...]:
        first = group.iloc[0]
        return tuple(order.get(first[key], 9) if key == "precision" else first[key] for key in keys)

    return sorted((group for _, group in frame.groupby(keys, dropna=False)), key=place)


def condition(group: pd.DataFrame, *keys: str) -> str:
    """A panel's title from the columns that define it."""
    words = {"seq_len": "{} tokens"}
    return ", ".join(words.get(key, "{}").format(group[key].iloc[0]) for key in keys)
