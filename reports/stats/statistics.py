"""Tests and intervals behind the verdicts: pure functions of numbers.

All use Student's t with df = n - 1. Paired differences are candidate minus baseline, so that a
positive difference in loss is worse.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats


@dataclass(frozen=True)
class Interval:
    """A mean (or ratio) with its two-sided confidence interval; bounds are nan for n = 1."""

    estimate: float
    lower: float
    upper: float
    n: int
    sd: float
    confidence: float


@dataclass(frozen=True)
class PairedTest:
    """One-sided test of a mean difference against `margin`.

    `lower` and `upper` are one-sided bounds, each at 1 - alpha; `p_value` is for the null
    hypothesis "the mean difference is at least the margin", `p_refuted` for "it is at most that".
    """

    estimate: float
    sd: float
    n: int
    df: int
    lower: float
    upper: float
    margin: float
    alpha: float
    p_value: float
    verdict: str
    p_refuted: float


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Two-sided t interval of the mean. Raises `ValueError` for no or non-finite values."""
    sample = finite(values, 1)
    mean, n = float(sample.mean()), len(sample)
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1, math.nan, confidence)
    sd = float(sample.std(ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, sd, confidence)


def corrected_interval(
    differences: Sequence[float], test_over_train: float, confidence: float = 0.95
) -> Interval:
    """Two-sided t interval of a mean over repeated folds, whose training sets overlap.

    The variance of the mean is taken as (1/n + n_test/n_train) s^2 with df = n - 1: Nadeau and
    Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003, who take the
    correlation of two results as n_test / (n_test + n_train); for repeated folds as Bouckaert and
    Frank, PAKDD 2004. It is an approximation: no unbiased variance exists. `test_over_train` is
    n_test/n_train, images judged on over images trained on.

    Raises `ValueError` for fewer than two or non-finite values.
    """
    sample = finite(differences, 2)
    n, mean, sd = len(sample), float(sample.mean()), float(sample.std(ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * sd * math.sqrt(1 / n + test_over_train)
    return Interval(mean, mean - half, mean + half, n, sd, confidence)


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


def noninferiority(differences: Sequence[float], margin: float, alpha: float = 0.05) -> PairedTest:
    """Is the mean difference below `margin`?

    reproduced: the upper bound is below the margin; refuted: the lower bound is above it;
    inconclusive otherwise. Raises `ValueError` for fewer than two or non-finite differences.
    """
    return one_sided(differences, margin, alpha)


def better(differences: Sequence[float], alpha: float = 0.05) -> PairedTest:
    """Is the mean difference below zero? Same verdict words as `noninferiority`."""
    return noninferiority(differences, 0.0, alpha)


def one_sided(differences: Sequence[float], margin: float, alpha: float) -> PairedTest:
    """The one-sided t test of "mean < margin" and of its opposite, each at `alpha`."""
    sample = finite(differences, 2)
    n, mean, sd = len(sample), float(sample.mean()), float(sample.std(ddof=1))
    error = sd / math.sqrt(n)
    half = float(stats.t.ppf(1 - alpha, n - 1)) * error
    p = tail(mean - margin, error, n - 1)
    lower, upper = mean - half, mean + half
    verdict = "reproduced" if upper < margin else "refuted" if lower > margin else "inconclusive"
    opposite = tail(margin - mean, error, n - 1)
    return PairedTest(mean, sd, n, n - 1, lower, upper, margin, alpha, p, verdict, opposite)


def sign_test(worse: int, better: int) -> float:
    """One-sided exact sign test: P(at least `worse` of the discordant pairs) when p = 1/2."""
    return float(stats.binom.sf(worse - 1, worse + better, 0.5))


def upper_sd(sd: float, n: int, confidence: float = 0.8) -> float:
    """Upper limit of the true standard deviation, from that of n normal values (chi-squared).

    Raises `ValueError` for fewer than two values.
    """
    if n < 2:
        raise ValueError(f"{n} values have no spread.")
    return sd * math.sqrt((n - 1) / float(stats.chi2.ppf(1 - confidence, n - 1)))


def power(n: int, distance: float, sd: float, alpha: float = 0.05) -> float:
    """Power of the one-sided t test with n pairs when the truth lies `distance` inside the margin.

    From the noncentral t distribution; `distance` and `sd` in the same unit.
    """
    if n < 2:
        return 0.0
    if sd == 0:
        return 1.0 if distance > 0 else 0.0
    shift = distance / sd * math.sqrt(n)
    if abs(shift) > 30:  # beyond what the distribution function resolves
        return float(shift > 0)
    return float(stats.nct.sf(stats.t.ppf(1 - alpha, n - 1), n - 1, shift))


def required_n(
    sd: float, distance: float, alpha: float = 0.05, target: float = 0.8, limit: int = 100_000
) -> int | None:
    """The fewest pairs that reach power `target`; None where `limit` pairs do not.

    `distance` is how far the true difference lies inside the margin.
    """
    if distance <= 0:
        return None
    return smallest_n(lambda n: power(n, distance, sd, alpha), target, limit)


def smallest_n(
    power_of: Callable[[int], float], target: float = 0.8, limit: int = 100_000
) -> int | None:
    """The fewest pairs (at least 2) with `power_of` at `target`, which must rise with n."""
    if power_of(limit) < target:
        return None
    low, high = 1, 2
    while power_of(high) < target:
        low, high = high, min(2 * high, limit)
    while high - low > 1:
        middle = (low + high) // 2
        if power_of(middle) < target:
            low = middle
        else:
            high = middle
    return high


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], confidence: float = 0.95
) -> Interval:
    """Geometric mean of paired ratios with a t interval on their logs (times of interleaved runs).

    `sd` is that of the log ratios. Raises `ValueError` for unequal lengths or values <= 0.
    """
    if len(numerators) != len(denominators):
        raise ValueError(f"{len(numerators)} numerators but {len(denominators)} denominators.")
    top, bottom = finite(numerators, 1), finite(denominators, 1)
    if (top <= 0).any() or (bottom <= 0).any():
        raise ValueError("A ratio of times needs values above 0.")
    logs = mean_interval(np.log(top / bottom).tolist(), confidence)
    return Interval(
        math.exp(logs.estimate),
        math.exp(logs.lower),
        math.exp(logs.upper),
        logs.n,
        logs.sd,
        confidence,
    )


def tail(distance: float, error: float, df: int) -> float:
    """P(T <= distance / error); without spread 0, 1/2 or 1 by the sign of the distance."""
    if error == 0:
        return 0.5 if distance == 0 else float(distance > 0)
    return float(stats.t.cdf(distance / error, df))


def finite(values: Sequence[float], least: int) -> np.ndarray:
    """The values as float64. Raises `ValueError` when there are too few or any is not finite."""
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < least:
        raise ValueError(f"{len(sample)} values given, at least {least} needed.")
    if not np.isfinite(sample).all():
        raise ValueError("Every value must be finite.")
    return sample
