"""A study prepared for its page: what several tables and figures need, made once."""

from functools import cached_property

import pandas as pd

from reports.data.curves import Curves
from reports.data.load import BASELINE, StudyData
from reports.data.rates import arms, at_best_rates
from reports.data.values import capped


class Report:
    """A study with its cells in the selections that tables and figures share.

    `margin`, nats/token, is that of the claim on loss. `runs` holds all cells, `plain` those
    without a memory cap, `shown` of these the best rates of a sweep alone, `arms` the training
    cells of `plain` with one variant over all rates.
    """

    def __init__(self, data: StudyData, margin: float = 0.01, baseline: str = BASELINE) -> None:
        self.data, self.margin, self.baseline = data, margin, baseline
        self.runs = data.runs
        self.plain = data.runs[~capped(data.runs)]

    @cached_property
    def shown(self) -> pd.DataFrame:
        """Of a sweep over rates the best of each optimizer and the baseline's own."""
        return at_best_rates(self.plain, self.baseline)

    @cached_property
    def arms(self) -> pd.DataFrame:
        """Training cells with `rate`; one arm keeps one variant at all rates."""
        return arms(self.plain)

    @cached_property
    def curves(self) -> Curves:
        """Held-out loss curves."""
        return Curves(self.data.curves)
