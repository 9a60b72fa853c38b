"""Learning rates that a search found at the edge of its grid: a better one may lie beyond it."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from reports.data.text import listed
from reports.data.values import rates


@cache
def winners() -> list[dict[str, Any]]:
    """Winners in configs/tuned: file, optimizer, lr, edge (of the grid), model, seq_len."""
    folder = Path(__file__).resolve().parents[2] / "configs" / "tuned"
    found = []
    for path in sorted(folder.glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        keys = {"file": path.stem, "model": values.get("model"), "seq_len": values.get("seq_len")}
        for name, winner in (values.get("winners") or {}).items():
            edge = bool(winner.get("edge_of_grid"))
            found.append({"optimizer": name, "lr": winner["lr"], "edge": edge, **keys})
    return found


def winner_of(row: Mapping[Any, Any], rate: float) -> list[dict[str, Any]]:
    """The winners that a cell's rate may come from; those of the longest name that fits.

    A record does not say where its rate came from, so a winner is recognised by model, sequence
    length, rate and name; a variant (gefen_4bit_own_rate) begins with the name it was tuned under.
    """
    fits = [
        winner
        for winner in winners()
        if (winner["model"], winner["seq_len"]) == (row["model"], row["seq_len"])
        and winner["lr"] == rate
        and f"{row['optimizer']}_".startswith(f"{winner['optimizer']}_")
    ]  # of gefen and gefen_4bit the longer name is the one that was tuned
    longest = max((len(winner["optimizer"]) for winner in fits), default=0)
    return [winner for winner in fits if len(winner["optimizer"]) == longest]


def tuned_edge(row: Mapping[Any, Any], rate: float) -> bool | None:
    """Whether a cell's rate won at the edge of its grid; None where no tuned file has it."""
    found = winner_of(row, rate)
    return all(winner["edge"] for winner in found) if found else None


def edge_note(mine: pd.DataFrame, base: pd.DataFrame) -> str:
    """The sentence that names rates which won at the edge of a grid; "" if there are none.

    At the baseline's rate a subject's own search is beside the point.
    """
    found: dict[str, None] = {}
    mine, base = (side.assign(rate=rates(side)) for side in (mine, base))
    own = mine[~mine["rate"].isin(base["rate"])]
    for row in pd.concat([own, base]).to_dict("records"):
        fits = [winner for winner in winner_of(row, row["rate"]) if winner["edge"]]
        if fits:
            found[f"{row['rate']:g} for {row['optimizer']} (configs/tuned/{fits[0]['file']})"] = (
                None
            )
    if not found:
        return ""
    return f"Rate at the edge of its grid, so a better one may lie beyond: {listed(found)}."
