"""Memory cells that ended without a result: what a verdict on bytes must say about them."""

import pandas as pd

from reports.claims.types import Claim
from reports.data.load import StudyData
from reports.data.pairing import counted, unfinished
from reports.data.values import capped


def uncapped(runs: pd.DataFrame) -> pd.DataFrame:
    """Cells without a memory cap: a search under one runs out of memory on purpose."""
    return runs[~capped(runs)]


def own_failures(claim: Claim, optimizer: str, data: StudyData) -> pd.DataFrame:
    """Memory cells of the subject or the baseline that ended without a result."""
    runs = uncapped(data.runs[(data.runs["task"] == "memory") & (data.runs["status"] != "done")])
    return runs[runs["optimizer"].isin([optimizer, claim.baseline])]


def lost_models(claim: Claim, optimizer: str, data: StudyData) -> list[str]:
    """Failed cells of the subject whose conditions the subject counted in no other cell."""
    failures = own_failures(claim, optimizer, data)
    failures = failures[failures["optimizer"] == optimizer]
    failures = failures[failures["precision"].isin(claim.precisions)]
    whole = counted(data.runs[data.runs["optimizer"] == optimizer])
    known = set(zip(whole["model"], whole["precision"], strict=True))
    return [
        str(row["id"])
        for row in failures.to_dict("records")
        if (row["model"], row["precision"]) not in known
    ]


def failed(cells: pd.DataFrame) -> list[str]:
    """The sentence that names cells without a result, as a list of none or one."""
    names = unfinished(cells)
    return [f"Without a result: {'; '.join(names)}."] if names else []
