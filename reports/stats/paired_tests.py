"""Tests of paired outcomes that need no normal distribution: counts, and runs without a number."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reports.stats.statistics import finite, sign_test

MOST_EXACT = 16  # pairs whose 2**n signs are all tried; of more, so many are drawn
DRAWS = 1 << 16


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
