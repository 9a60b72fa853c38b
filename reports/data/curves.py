"""Held-out loss curves of a study's cells, by step."""

import pandas as pd

LOSS = "eval/loss"


class Curves:
    """Held-out loss curves by cell, pivoted once: a report asks for them some hundred times."""

    def __init__(self, curves: pd.DataFrame) -> None:
        """From the table of `reports.data.load`; of a step logged twice the last value counts."""
        chosen = curves[curves["key"] == LOSS].drop_duplicates(["step", "id"], keep="last")
        self.tables = {
            name: chosen.pivot(index="step", columns="id", values=name)
            for name in ("value", "tokens", "train_seconds")
        }
        self._ones: dict[tuple[str, str], pd.Series] = {}

    def of(self, ids: pd.Series, column: str = "value") -> pd.DataFrame:
        """`column` with cells as columns; rows are the steps that every one of them reached."""
        return self.tables[column].reindex(columns=list(ids)).dropna()

    def one(self, cell: str, column: str = "value") -> pd.Series:
        """`column` of one cell by step."""
        key = (cell, column)
        if key not in self._ones:
            self._ones[key] = self.tables[column][cell].dropna()
        return self._ones[key]


def trained(runs: pd.DataFrame, curves: Curves) -> pd.DataFrame:
    """The runs that left a held-out loss curve."""
    return runs[runs["id"].isin(set(curves.tables["value"].columns))]
