"""Two one-sided tests that a mean difference is the same as zero, and their power."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from reports.stats.statistics import one_sided, smallest_n, tail

NODES = 400  # of the quadrature over the sample's standard deviation


@dataclass(frozen=True)
class EquivalenceTest:
    """Two one-sided tests: `lower`, `upper` bound the mean at confidence 1 - 2 alpha.

    `p_value` is the larger of the two; `p_refuted` the smaller of those for the mean beyond either
    margin. `verdict`: reproduced when the interval lies inside
    (low, high), refuted when it lies wholly outside, else inconclusive.
    """

    estimate: float
    sd: float
    lower: float
    upper: float
    n: int
    p_value: float
    equivalent: bool
    verdict: str
    p_refuted: float


def tost(
    differences: Sequence[float], low: float, high: float, alpha: float = 0.05
) -> EquivalenceTest:
    """Does the mean difference lie inside (low, high)? (Schuirmann 1987)

    Raises `ValueError` for fewer than two or non-finite differences, or low >= high.
    """
    if not low < high:
        raise ValueError(f"low={low} must be below high={high}.")
    test = one_sided(differences, high, alpha)
    below = tail(-(test.estimate - low), test.sd / math.sqrt(test.n), test.df)
    p = max(test.p_value, below)
    same = low < test.lower and test.upper < high
    outside = test.lower > high or test.upper < low
    verdict = "reproduced" if same else "refuted" if outside else "inconclusive"
    opposite = min(test.p_refuted, tail(test.estimate - low, test.sd / math.sqrt(test.n), test.df))
    return EquivalenceTest(
        test.estimate, test.sd, test.lower, test.upper, test.n, p, same, verdict, opposite
    )


def tost_power(
    n: int, truth: float, sd: float, low: float, high: float, alpha: float = 0.05
) -> float:
    """Probability that `tost` with n pairs finds equivalence when the true mean is `truth`.

    The mean and the sample's standard deviation are independent, so this is the normal probability
    of the mean, integrated over the chi-squared distribution of the variance.
    """
    if n < 2:
        return 0.0
    if sd == 0:
        return float(low < truth < high)
    error = sd / math.sqrt(n)
    quantiles = (np.arange(NODES) + 0.5) / NODES
    spread = np.sqrt(stats.chi2.ppf(quantiles, n - 1) / (n - 1))
    half = float(stats.t.ppf(1 - alpha, n - 1)) * spread
    inside = stats.norm.cdf((high - truth) / error - half) - stats.norm.cdf(
        (low - truth) / error + half
    )
    return float(np.clip(inside, 0, None).mean())


def tost_required_n(
    sd: float, truth: float, margin: float, alpha: float = 0.05, target: float = 0.8
) -> int | None:
    """The fewest pairs for which `tost` within ±margin reaches power `target`; None if too many."""
    if abs(truth) >= margin:
        return None
    return smallest_n(lambda n: tost_power(n, truth, sd, -margin, margin, alpha), target)
