"""Learning rates that a search found at the edge of its grid: a better one may lie beyond it."""

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from reports.text import listed
from reports.values import rates


@cache
def edge_winners() -> list[dict[str, Any]]:
    """Winners at an edge in configs/tuned: file, optimizer, model, seq_len, lr."""
    folder = Path(__file__).resolve().parent.parent / "configs" / "tuned"
    found = []
    for path in sorted(folder.glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        for name, winner in (values.get("winners") or {}).items():
            if winner.get("edge_of_grid"):
                keys = {"model": values.get("model"), "seq_len": values.get("seq_len")}
                found.append({"file": path.stem, "optimizer": name, "lr": winner["lr"], **keys})
    return found


def edge_note(mine: pd.DataFrame, base: pd.DataFrame) -> str:
    """The sentence that names rates which won at the edge of a grid; "" if there are none.

    A record does not say where its rate came from, so a winner is recognised by model, sequence
    length, rate and name; a variant (gefen_4bit_own_rate) begins with the name it was tuned under.
    At the baseline's rate a subject's own search is beside the point.
    """
    found: dict[str, None] = {}
    mine, base = (side.assign(rate=rates(side)) for side in (mine, base))
    own = mine[~mine["rate"].isin(base["rate"])]
    for row in pd.concat([own, base]).to_dict("records"):
        fits = [
            winner
            for winner in edge_winners()
            if (winner["model"], winner["seq_len"]) == (row["model"], row["seq_len"])
            and winner["lr"] == row["rate"]
            and f"{row['optimizer']}_".startswith(f"{winner['optimizer']}_")
        ]
        if fits:  # of gefen and gefen_4bit the longer name is the one that was tuned
            best = max(fits, key=lambda winner: len(winner["optimizer"]))
            found[f"{row['rate']:g} for {row['optimizer']} (configs/tuned/{best['file']})"] = None
    if not found:
        return ""
    return f"Rate at the edge of its grid, so a better one may lie beyond: {listed(found)}."
