"""Final losses paired by seed: which pairs count, which were lost, and why."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from reports.claims.claim import Verdict
from reports.data.identity import HARMLESS, differing
from reports.data.pairing import Row
from reports.data.text import listed

SEEDS = ["model_seed", "data_seed"]
# Keys of a configuration that a key of COMPARED stands for: allowing one allows the other.
STANDS_FOR = {
    **{"data_hash": ("data",), "precision": ("precision",), "device": ("threads",)},
    **{"ranks": ("launch",)},
}


@dataclass
class Pairs:
    """The pairs of one condition: differences, pairs lost to divergence, and seeds left out.

    `diverged` and `base_diverged` are the discordant pairs: only the candidate or only the baseline
    diverged. `failed` and `missing` name seeds at which the baseline finished and the candidate
    failed otherwise or has no cell.
    """

    differences: list[float] = field(default_factory=list)
    diverged: list[str] = field(default_factory=list)
    base_diverged: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Pairs that count, those in which one of the two diverged included."""
        return len(self.differences) + len(self.diverged) + len(self.base_diverged)


def mixture(mine: pd.DataFrame, base: pd.DataFrame, allowed: Sequence[str] = ()) -> str:
    """What, besides seeds and the choice of optimizer, differs where it must not; "" if nothing.

    `allowed` names keys of COMPARED that may differ.
    """
    ignore = (*HARMLESS, *(name for key in allowed for name in STANDS_FOR.get(key, ())))
    found = []
    for cells in (mine, base):
        name = cells["optimizer"].iloc[0]
        if cells.duplicated(SEEDS).any():
            found.append(f"several {name} cells have the same seeds")
        for key, values in differing(list(cells["config"]), ignore).items():
            found.append(f"the {name} cells mix {key} = {listed(values)}")
    if found:
        return "; ".join(found)
    configs = [mine["config"].iloc[0], base["config"].iloc[0]]
    for key, values in differing(configs, (*ignore, "optimizer")).items():
        found.append(f"{key} is {values[0]} against {values[1]}")
    return "; ".join(found)


def pair(mine: pd.DataFrame, base: pd.DataFrame) -> Pairs:
    """Pair by model and data seed; nothing is dropped without a name."""
    pairs = Pairs()
    mine_at, base_at = by_seeds(mine), by_seeds(base)
    for model_seed, data_seed in sorted({*mine_at, *base_at}):
        name = f"seed {model_seed}" if model_seed == data_seed else f"{model_seed}/{data_seed}"
        left, right = (side.get((model_seed, data_seed)) for side in (mine_at, base_at))
        mine_ends, base_ends = trouble(left), trouble(right)
        if left is not None and mine_ends == "diverged" and not base_ends:
            pairs.diverged.append(f"{name} ({left['id']})")
        elif right is not None and base_ends == "diverged" and not mine_ends:
            pairs.base_diverged.append(f"{name} ({right['id']})")
        elif mine_ends or base_ends:
            which, who = (right, base) if base_ends else (left, mine)
            cell = "" if which is None else f" in {which['id']}"
            what = base_ends or mine_ends
            pairs.left_out.append(f"{name} ({who['optimizer'].iloc[0]} {what}{cell})")
            if not base_ends:
                (pairs.missing if left is None else pairs.failed).append(name)
            continue
        else:
            assert left is not None
            assert right is not None
            pairs.differences.append(float(left["final_eval_loss"] - right["final_eval_loss"]))
        pairs.cells += [str(row["id"]) for row in (left, right) if row is not None]
    return pairs


def planned(cells: pd.DataFrame, pending: Sequence[Row]) -> tuple[int, int]:
    """Seeds planned for these cells in all, and planned cells of theirs without a record.

    `pending` are entries of study.json. A label ends in the seed; what stands before it (model,
    optimizer, length, precision, rate) and the part say to which arm a cell belongs.
    """
    arms = {(part, label.rpartition("/")[0])
            for part, label in zip(cells["part"], cells["label"], strict=True)}  # fmt: skip
    open_cells = [
        str(item["label"])
        for item in pending
        if (item.get("part"), str(item.get("label")).rpartition("/")[0]) in arms
    ]
    seeds = {label.rpartition("/")[2] for label in [*cells["label"], *open_cells]}
    return len(seeds), len(open_cells)


def by_seeds(cells: pd.DataFrame) -> dict[tuple[int, int], Row]:
    """Each cell by its model and data seed."""
    rows = cells.drop(columns=["config"]).to_dict("records")
    return {(row["model_seed"], row["data_seed"]): row for row in rows}


def trouble(run: Row | None) -> str:
    """Why a cell has no final loss at the end of its planned schedule; "" if it has one."""
    if run is None:
        return "has no cell"
    if run["status"] != "done":
        return str(run["status"])
    if run["steps"] != run["planned_steps"]:
        return f"stopped at step {run['steps']:.0f} of {run['planned_steps']:.0f}"
    return "" if math.isfinite(run["final_eval_loss"]) else "has no final evaluation"


def interim(found: Verdict, seeds: int, open_cells: int) -> Verdict:
    """A verdict before all planned cells are there is none: it would be looked at again."""
    if not open_cells:
        return found
    said = f"Interim: {found.n} of {seeds} planned pairs; a verdict waits for the rest."
    word = found.verdict if found.verdict == "not tested" else "inconclusive"
    return replace(found, verdict=word, sentence=f"{said} {found.sentence}")
