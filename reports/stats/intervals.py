"""Confidence intervals of means and ratios: Student's t with df = n - 1."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean (or ratio) with its two-sided confidence interval; bounds are nan for n = 1."""

    estimate: float
    lower: float
    upper: float
    n: int
    sd: float
    confidence: float


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
    mean, lower, upper = map(math.exp, (logs.estimate, logs.lower, logs.upper))
    return Interval(mean, lower, upper, logs.n, logs.sd, confidence)


def finite(values: Sequence[float], least: int) -> np.ndarray:
    """The values as float64. Raises `ValueError` when there are too few or any is not finite."""
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < least:
        raise ValueError(f"{len(sample)} values given, at least {least} needed.")
    if not np.isfinite(sample).all():
        raise ValueError("Every value must be finite.")
    return sample
