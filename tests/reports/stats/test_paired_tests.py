"""Exact paired tests beside scipy's, and how often claims on counts and crossings are wrong."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from reports.claims.claim import Claim
from reports.claims.combine import together
from reports.claims.estimators.outcomes import Paired, by_flips, by_order, by_t
from reports.claims.estimators.training import COUNTS, TOKENS
from reports.claims.files import claims_folder, read_claim
from reports.claims.registry import all_estimators
from reports.stats.paired_tests import flip_test, order_test

STUDIES = 1200


@pytest.fixture(scope="module")
def claim() -> Claim:
    return read_claim(claims_folder() / "stam_spikes.yaml", all_estimators())


def above(count: int, alpha: float = 0.05) -> bool:
    """Whether `count` of STUDIES is a rate above alpha beyond the simulation's error."""
    low, _ = proportion_confint(count, STUDIES, alpha=6e-5, method="beta")
    return bool(low > alpha)


@pytest.mark.parametrize("n", [1, 5, 9])
def test_flipping_signs_is_scipys_permutation_test(n: int) -> None:
    rng = np.random.default_rng(n)
    mine, base = rng.poisson(3, n).astype(float), rng.poisson(4, n).astype(float)
    found = flip_test((mine - base).tolist())
    if n == 1:  # scipy asks for two
        lower, higher = (1.0 if s * (mine - base)[0] > 0 else 0.5 for s in (1, -1))
        lower, higher = (1.0, 1.0) if mine[0] == base[0] else (lower, higher)
    else:
        lower, higher = (
            stats.permutation_test(
                (mine, base), lambda a, b: np.mean(a - b), permutation_type="samples",
                alternative=side, n_resamples=np.inf,
            ).pvalue
            for side in ("less", "greater")
        )  # fmt: skip
    assert (found.p_lower, found.p_higher) == pytest.approx((lower, higher))


def test_many_pairs_are_drawn_close_to_the_exact_value() -> None:
    differences = [1, 2, -1, 3, 0, 1, -2, 4, 1, 1, -1, 2, 2, -3, 1, 0, 1, 2, -1, 1, 1]
    ways = {0: 1}  # the exact distribution of the sum, one pair after another
    for size in map(abs, differences):
        ways = {
            total: ways.get(total - size, 0) + ways.get(total + size, 0)
            for total in {t + s for t in ways for s in (-size, size)}
        }
    exact = sum(n for total, n in ways.items() if total >= sum(differences)) / sum(ways.values())
    found = flip_test(differences)
    assert found.p_higher == pytest.approx(exact, abs=4 * math.sqrt(exact / 2**16))
    assert found == flip_test(differences)


def test_no_difference_tells_nothing_and_nan_is_refused() -> None:
    assert dataclasses.astuple(flip_test([0, 0, 0])) == (1.0, 1.0)
    with pytest.raises(ValueError, match="finite"):
        flip_test([1, math.inf])
    with pytest.raises(ValueError, match="nan"):
        order_test([math.nan], [1.0])


def test_the_order_of_pairs_takes_infinite_outcomes() -> None:
    mine, base = [1, 1, 2, math.inf, 3, 1], [2, math.inf, 3, math.inf, 4, 2]
    found = order_test(mine, base)  # five lower, one tie
    assert found.p_lower == pytest.approx(stats.binomtest(5, 5, alternative="greater").pvalue)
    assert found.p_higher == 1.0


def judged(claim: Claim, mine: list[float], base: list[float], measure: Any) -> Any:
    """The word and the p-value of one condition, tests as `outcomes.judge` picks them."""
    paired = Paired(mine=mine, base=base)
    if any(map(math.isinf, [*mine, *base])):
        word, _, found = by_order(claim, paired, measure)
    elif measure.is_count:
        word, _, found = by_flips(claim, paired, measure)
    else:
        word, _, found = by_t(claim, paired, measure, 1)
    return word, found["p_refuted"]


@pytest.mark.parametrize("conditions", [1, 4])
def test_equal_spikes_are_found_unequal_at_most_at_alpha(claim: Claim, conditions: int) -> None:
    """Clustered counts of seven seeds, now and then a run that diverges, equal in both arms."""
    rng = np.random.default_rng(conditions)
    counts = rng.negative_binomial(0.7, 0.15, (STUDIES, conditions, 2, 7)).astype(float)
    seeds = rng.gamma(4, 0.25, (STUDIES, conditions, 1, 7))  # hard seeds are hard for both
    counts = np.round(counts * seeds)
    counts[rng.random(counts.shape) < 0.04] = math.inf
    words, poisson = [], 0
    for study in counts:
        parts = [judged(claim, mine.tolist(), base.tolist(), COUNTS) for mine, base in study]
        words.append(together(parts, claim.alpha))
        a, b = (np.where(np.isinf(arm), 0, arm).sum() for arm in study[0])
        poisson += stats.binom.cdf(a, a + b, 0.5) < 0.05
    assert not above(words.count("refuted"))
    assert not above(words.count("reproduced"))
    assert conditions == 4 or words.count("refuted") / STUDIES > 0.02  # the error is used
    assert poisson / STUDIES > 0.15  # what a test of Poisson counts would have said


def test_equal_crossings_some_of_them_never_are_wrong_at_most_at_alpha(
    claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "reports.claims.estimators.outcomes.pairs_needed", lambda *_: ""
    )  # slow, words alone
    rng = np.random.default_rng(7)
    logs = rng.normal(12, 0.1, (STUDIES, 1, 5)) + rng.normal(0, 0.05, (STUDIES, 2, 5))
    logs[rng.random(logs.shape) < 0.08] = math.inf
    words = [judged(claim, m.tolist(), b.tolist(), TOKENS)[0] for m, b in logs]
    assert np.isinf(logs).any((1, 2)).mean() > 0.3
    assert not above(words.count("refuted"))
    assert not above(words.count("reproduced"))
    assert words.count("reproduced") / STUDIES > 0.02


@pytest.mark.parametrize(("factor", "word"), [(0.3, "reproduced"), (3.0, "refuted")])
def test_a_true_difference_in_spikes_is_found(claim: Claim, factor: float, word: str) -> None:
    rng = np.random.default_rng(11)
    found = [
        judged(claim, rng.poisson(8 * factor, 7).tolist(), rng.poisson(8, 7).tolist(), COUNTS)[0]
        for _ in range(200)
    ]
    assert found.count(word) > 190
