"""Tests of paired differences, candidate minus baseline: Student's t, and exact tests without it.

A positive difference in loss is worse. The exact tests serve counts, and runs without a number.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from reports.stats.intervals import finite

MOST_EXACT = 16  # pairs whose 2**n signs are all tried; of more, so many are drawn
DRAWS = 1 << 16


@dataclass(frozen=True)
class PairedTest:
    """A test of a mean difference: `lower`, `upper` are one-sided bounds, each at 1 - alpha.

    `p_value` is for the null hypothesis "the claim does not hold", `p_refuted` for "it holds".
    `verdict`: reproduced, refuted or inconclusive.
    """

    estimate: float
    sd: float
    n: int
    lower: float
    upper: float
    p_value: float
    p_refuted: float
    verdict: str


def noninferiority(differences: Sequence[float], margin: float, alpha: float = 0.05) -> PairedTest:
    """Is the mean difference below `margin`? Each direction is tested at `alpha`.

    reproduced: the upper bound is below the margin; refuted: the lower bound is above it;
    inconclusive otherwise. Raises `ValueError` for fewer than two or non-finite differences.
    """
    sample = finite(differences, 2)
    n, mean, sd = len(sample), float(sample.mean()), float(sample.std(ddof=1))
    error = sd / math.sqrt(n)
    half = float(stats.t.ppf(1 - alpha, n - 1)) * error
    lower, upper = mean - half, mean + half
    verdict = "reproduced" if upper < margin else "refuted" if lower > margin else "inconclusive"
    p_value, p_refuted = tail(mean - margin, error, n - 1), tail(margin - mean, error, n - 1)
    return PairedTest(mean, sd, n, lower, upper, p_value, p_refuted, verdict)


def better(differences: Sequence[float], alpha: float = 0.05) -> PairedTest:
    """Is the mean difference below zero? Same verdict words as `noninferiority`."""
    return noninferiority(differences, 0.0, alpha)


def tost(differences: Sequence[float], low: float, high: float, alpha: float = 0.05) -> PairedTest:
    """Does the mean difference lie inside (low, high)? Two one-sided tests (Schuirmann 1987).

    reproduced: the interval at confidence 1 - 2 alpha lies inside; refuted: wholly outside.
    Raises `ValueError` for fewer than two or non-finite differences, or low >= high.
    """
    if not low < high:
        raise ValueError(f"low={low} must be below high={high}.")
    test = noninferiority(differences, high, alpha)
    error, df = test.sd / math.sqrt(test.n), test.n - 1
    same, outside = low < test.lower and test.upper < high, test.lower > high or test.upper < low
    return PairedTest(
        test.estimate, test.sd, test.n, test.lower, test.upper,
        p_value=max(test.p_value, tail(low - test.estimate, error, df)),
        p_refuted=min(test.p_refuted, tail(test.estimate - low, error, df)),
        verdict="reproduced" if same else "refuted" if outside else "inconclusive",
    )  # fmt: skip


def tail(distance: float, error: float, df: int) -> float:
    """P(T <= distance / error); without spread 0, 1/2 or 1 by the sign of the distance."""
    if error == 0:
        return 0.5 if distance == 0 else float(distance > 0)
    return float(stats.t.cdf(distance / error, df))


def sign_test(worse: int, better: int) -> float:
    """One-sided exact sign test: P(at least `worse` of the discordant pairs) when p = 1/2."""
    return float(stats.binom.sf(worse - 1, worse + better, 0.5))


@dataclass(frozen=True)
class TwoSided:
    """The p-values of one test in both directions: the candidate is lower, or higher."""

    p_lower: float
    p_higher: float

    def verdict(self, alpha: float) -> str:
        """For a claim that the candidate is lower, each direction at `alpha`."""
        if self.p_lower < alpha:
            return "reproduced"
        return "refuted" if self.p_higher < alpha else "inconclusive"


def flip_test(differences: Sequence[float]) -> TwoSided:
    """Exact test of a mean paired difference (candidate minus baseline) by flipping signs.

    Where the two arms do not differ, each pair could as well have come out the other way round, so
    every choice of signs is equally likely; p is the share of choices with a sum at least as
    extreme (Fisher 1935). It asks nothing of the distribution: spikes come in clusters, so that
    Poisson's would reject too often. Of more than 16 pairs that differ, 65,536 choices are drawn
    from a fixed seed, the observed one added. Raises `ValueError` for no or non-finite values.
    """
    sample = finite(differences, 1)
    moved = np.abs(sample[sample != 0])
    observed = float(sample.sum())
    if len(moved) <= MOST_EXACT:
        choices = list(itertools.product((-1, 1), repeat=len(moved)))
        signs = np.array(choices, dtype=np.int8).reshape(len(choices), len(moved))
        extra = 0
    else:
        generator = np.random.default_rng(0)
        signs = 2 * generator.integers(0, 2, (DRAWS, len(moved)), dtype=np.int8) - 1
        extra = 1
    sums = signs @ moved
    slack = 1e-9 * float(moved.sum())  # equal sums of different order must stay equal
    higher, lower = (sums >= observed - slack).sum(), (sums <= observed + slack).sum()
    return TwoSided(
        float((lower + extra) / (len(sums) + extra)), float((higher + extra) / (len(sums) + extra))
    )


def order_test(candidate: Sequence[float], baseline: Sequence[float]) -> TwoSided:
    """Exact sign test of which of each pair is lower; ties are left out, infinite is a value.

    Raises `ValueError` for unequal lengths or nan.
    """
    pairs = list(zip(candidate, baseline, strict=True))
    if any(math.isnan(value) for pair in pairs for value in pair):
        raise ValueError("An outcome must not be nan.")
    lower = sum(mine < other for mine, other in pairs)
    higher = sum(mine > other for mine, other in pairs)
    return TwoSided(sign_test(lower, higher), sign_test(higher, lower))
