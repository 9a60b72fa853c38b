"""Power, the numbers of pairs that it takes, and what a study of n pairs could detect."""

import bisect
import math
from collections.abc import Callable

import numpy as np
from scipy import optimize, stats
from statsmodels.stats.power import ttest_power

NODES = 400  # of the quadrature over the sample's standard deviation
MOST_PAIRS = 100_000


def power(n: int, distance: float, sd: float, alpha: float = 0.05) -> float:
    """Power of the one-sided t test with n pairs when the truth lies `distance` inside the margin.

    From the noncentral t distribution; `distance` and `sd` in the same unit.
    """
    if n < 2:
        return 0.0
    if sd == 0 or abs(distance / sd) * math.sqrt(n) > 30:  # beyond what the distribution resolves
        return float(distance > 0)
    return float(ttest_power(distance / sd, n, alpha, alternative="larger"))


def required_n(sd: float, distance: float, alpha: float = 0.05, target: float = 0.8) -> int | None:
    """The fewest pairs that reach power `target`; None where `MOST_PAIRS` do not.

    `distance` is how far the true difference lies inside the margin.
    """
    if distance <= 0:
        return None
    return smallest_n(lambda n: power(n, distance, sd, alpha), target)


def smallest_n(power_of: Callable[[int], float], target: float) -> int | None:
    """The fewest pairs (at least 2) with `power_of` at `target`, which must rise with n."""
    least = 2 + bisect.bisect_left(range(2, MOST_PAIRS + 1), target, key=power_of)
    return least if least <= MOST_PAIRS else None


def upper_sd(sd: float, n: int, confidence: float = 0.8) -> float:
    """Upper limit of the true standard deviation, from that of n normal values (chi-squared).

    Raises `ValueError` for fewer than two values.
    """
    if n < 2:
        raise ValueError(f"{n} values have no spread.")
    return sd * math.sqrt((n - 1) / float(stats.chi2.ppf(1 - confidence, n - 1)))


def detectable(
    sd: float, n: int, test_over_train: float = 0.0, alpha: float = 0.05, target: float = 0.8
) -> float:
    """The true difference that the two-sided test of `corrected_interval` finds with `target`.

    From the noncentral t distribution at the standard deviation `sd` of n differences (2 or more),
    in their unit.
    """
    critical = float(stats.t.ppf(1 - alpha / 2, n - 1))

    def missed(shift: float) -> float:
        # scipy gives nan for the far side's share where that is too small to count.
        far = float(np.nan_to_num(stats.nct.cdf(-critical, n - 1, shift)))
        return float(stats.nct.sf(critical, n - 1, shift)) + far - target

    shift = optimize.brentq(missed, 0.0, critical * (1.0 + 4.0 / math.sqrt(n)) + 2.0)
    return float(shift) * sd * math.sqrt(1 / n + test_over_train)


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
    half = stats.t.ppf(1 - alpha, n - 1) * np.sqrt(stats.chi2.ppf(quantiles, n - 1) / (n - 1))
    inside = stats.norm.cdf((high - truth) / error - half)
    inside -= stats.norm.cdf((low - truth) / error + half)
    return float(np.clip(inside, 0, None).mean())


def tost_required_n(
    sd: float, truth: float, margin: float, alpha: float = 0.05, target: float = 0.8
) -> int | None:
    """The fewest pairs for which `tost` within ±margin reaches power `target`; None if too many."""
    if abs(truth) >= margin:
        return None
    return smallest_n(lambda n: tost_power(n, truth, sd, -margin, margin, alpha), target)
