"""Statistics against scipy and statsmodels, and the error rate by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from statsmodels.stats.weightstats import ttost_paired

from reports.stats import intervals, paired_tests
from reports.stats import power as powers


def sample(seed: int, n: int, mean: float = 0.0, sd: float = 0.01) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, sd, n)


@pytest.mark.parametrize("n", [2, 5, 30])
@pytest.mark.parametrize("mean", [-0.02, 0.004, 0.03])
def test_noninferiority_is_the_one_sided_paired_t_test(n: int, mean: float) -> None:
    base, noise = sample(1, n, 3.0, 0.1), sample(2, n, mean)
    other = base + noise
    found = paired_tests.noninferiority((other - base).tolist(), 0.01)
    wanted = stats.ttest_rel(other, base + 0.01, alternative="less")
    assert found.p_value == pytest.approx(wanted.pvalue, rel=1e-6)
    assert (found.verdict == "reproduced") == (wanted.pvalue < 0.05)
    opposite = stats.ttest_rel(other, base + 0.01, alternative="greater")
    assert (found.verdict == "refuted") == (opposite.pvalue < 0.05)
    bounds = stats.ttest_rel(other, base).confidence_interval(0.90)
    assert (found.lower, found.upper) == pytest.approx((bounds.low, bounds.high))


@pytest.mark.parametrize("seed", range(5))
def test_tost_equals_statsmodels(seed: int) -> None:
    base, noise = sample(seed, 8, 3.0, 0.1), sample(seed + 50, 8, 0.002)
    found = paired_tests.tost((base + noise - base).tolist(), -0.01, 0.01)
    p_value = ttost_paired(base + noise, base, -0.01, 0.01)[0]
    assert found.p_value == pytest.approx(p_value, rel=1e-6)
    assert (found.verdict == "reproduced") == (p_value < 0.05)
    assert (found.verdict == "reproduced") == (found.lower > -0.01 and found.upper < 0.01)


@pytest.mark.parametrize("n", [3, 5, 20, 200])
@pytest.mark.parametrize("effect", [0.1, 0.5, 1.2])
def test_power_is_the_normal_one_integrated_over_the_spread(n: int, effect: float) -> None:
    critical, df = stats.t.ppf(0.95, n - 1), n - 1

    def found_at(share: float) -> float:
        """Power at one quantile of the sample's spread, which is independent of its mean."""
        spread = math.sqrt(stats.chi2.ppf(share, df) / df)
        return float(stats.norm.sf(critical * spread - effect * math.sqrt(n)))

    wanted = integrate.quad(found_at, 0, 1, limit=200)[0]
    assert powers.power(n, effect * 0.02, 0.02) == pytest.approx(wanted, abs=1e-6)


@given(st.floats(0.02, 5.0))
def test_required_n_is_the_first_that_reaches_the_power(effect: float) -> None:
    n = powers.required_n(1.0, effect)
    assert n is not None
    assert powers.power(n, effect, 1.0) >= 0.8
    assert n == 2 or powers.power(n - 1, effect, 1.0) < 0.8


def test_required_n_says_none_where_no_number_is_enough() -> None:
    assert powers.required_n(1.0, 0.0) is None
    assert powers.required_n(1.0, 1e-6) is None
    assert powers.required_n(0.0, 0.01) == 2


def test_error_rate_at_the_margin_is_alpha() -> None:
    """With the truth exactly on the margin, 5 % of studies are wrongly reproduced or refuted."""
    draws = np.random.default_rng(7).normal(0.01, 0.004, (3000, 5))
    verdicts = [paired_tests.noninferiority(row.tolist(), 0.01).verdict for row in draws]
    for word in ("reproduced", "refuted"):
        rate = verdicts.count(word) / len(verdicts)
        assert abs(rate - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 3000)


def test_coverage_of_the_ratio_interval() -> None:
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(1500):
        base = np.exp(rng.normal(0, 0.3, 6))
        interval = intervals.ratio_interval(
            (base * 2 * np.exp(rng.normal(0, 0.1, 6))).tolist(), base.tolist()
        )
        hits += interval.lower < 2.0 < interval.upper
    assert abs(hits / 1500 - 0.95) < 0.02


@pytest.mark.parametrize("n", [2, 5, 40])
def test_mean_interval_equals_scipy(n: int) -> None:
    values = sample(3, n, 3.0)
    found = intervals.mean_interval(values.tolist())
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.lower, found.upper) == pytest.approx((wanted.low, wanted.high))


def test_one_value_has_no_bounds_and_no_test() -> None:
    assert math.isnan(intervals.mean_interval([3.0]).upper)
    with pytest.raises(ValueError, match="at least 2"):
        paired_tests.noninferiority([0.1], 0.01)


def test_identical_differences_are_decided_by_their_sign() -> None:
    assert paired_tests.noninferiority([0.0] * 3, 0.01).verdict == "reproduced"
    assert paired_tests.noninferiority([0.02] * 3, 0.01).verdict == "refuted"
    assert paired_tests.better([-0.001, -0.002, -0.0015]).verdict == "reproduced"


@pytest.mark.parametrize("values", [[1.0, math.inf], [math.nan, 1.0]])
def test_non_finite_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        paired_tests.noninferiority(values, 0.01)


def test_a_ratio_refuses_what_has_no_logarithm() -> None:
    with pytest.raises(ValueError, match="above 0"):
        intervals.ratio_interval([1.0, 0.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="2 numerators but 1"):
        intervals.ratio_interval([1.0, 2.0], [1.0])


@pytest.mark.parametrize("n", [2, 6, 25])
def test_noninferiority_is_the_one_sample_test_of_the_differences(n: int) -> None:
    values = sample(21, n, 0.004)
    found = paired_tests.noninferiority(values.tolist(), 0.01)
    wanted = stats.ttest_1samp(values, 0.01, alternative="less")
    assert found.p_value == pytest.approx(wanted.pvalue)
    assert found.upper == pytest.approx(wanted.confidence_interval(0.95).high)
    greater = stats.ttest_1samp(values, 0.01, alternative="greater")
    assert found.lower == pytest.approx(greater.confidence_interval(0.95).low)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_the_ratio_interval_is_the_t_interval_of_the_logs(n: int) -> None:
    top, bottom = np.exp(sample(31, n, 1.0, 0.2)), np.exp(sample(32, n, 0.2, 0.2))
    found = intervals.ratio_interval(top.tolist(), bottom.tolist())
    paired = stats.ttest_rel(np.log(top), np.log(bottom)).confidence_interval(0.95)
    assert (found.lower, found.upper) == pytest.approx(tuple(np.exp([paired.low, paired.high])))
    assert found.estimate == pytest.approx(stats.gmean(top) / stats.gmean(bottom))


@pytest.mark.parametrize("n", [3, 5, 10])
def test_coverage_of_the_ratio_interval_for_few_processes(n: int) -> None:
    rng = np.random.default_rng(n)
    logs = rng.normal(math.log(1.7), 0.15, (2000, n))
    bounds = [intervals.ratio_interval(np.exp(row).tolist(), [1.0] * n) for row in logs]
    covered = np.mean([item.lower < 1.7 < item.upper for item in bounds])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


@pytest.mark.parametrize("n", [2, 5, 20])
@pytest.mark.parametrize("truth", [0.01, 0.013])
def test_a_worse_candidate_is_reproduced_at_most_at_alpha(n: int, truth: float) -> None:
    """Type I error of non-inferiority, at the margin and beyond it, down to two pairs."""
    draws = np.random.default_rng(n).normal(truth, 0.005, (2000, n))
    words = [paired_tests.noninferiority(row.tolist(), 0.01).verdict for row in draws]
    assert words.count("reproduced") / 2000 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)


def test_better_is_wrong_at_alpha_where_nothing_differs() -> None:
    draws = np.random.default_rng(41).normal(0.0, 0.02, (2000, 5))
    words = [paired_tests.better(row.tolist()).verdict for row in draws]
    for word in ("reproduced", "refuted"):
        assert abs(words.count(word) / 2000 - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize("edge", [-0.01, 0.01])
def test_the_same_is_wrong_at_most_at_alpha_at_either_margin(edge: float) -> None:
    draws = np.random.default_rng(43).normal(edge, 0.003, (2000, 6))
    words = [paired_tests.tost(row.tolist(), -0.01, 0.01).verdict for row in draws]
    for word in ("reproduced", "refuted"):
        assert words.count(word) / 2000 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize(("distance", "sd"), [(0.01, 0.004), (0.01, 0.012), (0.004, 0.006)])
def test_required_n_reaches_its_power_by_simulation(distance: float, sd: float) -> None:
    n = powers.required_n(sd, distance)
    assert n is not None
    draws = np.random.default_rng(n).normal(0.01 - distance, sd, (1500, n))
    words = [paired_tests.noninferiority(row.tolist(), 0.01).verdict for row in draws]
    rate = words.count("reproduced") / 1500
    error = 4 * math.sqrt(0.8 * 0.2 / 1500)
    assert rate >= 0.8 - error
    assert abs(rate - powers.power(n, distance, sd)) < error


@pytest.mark.parametrize(
    ("n", "truth", "sd"), [(2, 0.0, 0.002), (5, 0.0, 0.006), (12, 0.004, 0.008), (40, 0.002, 0.02)]
)
def test_power_of_two_one_sided_tests_by_simulation(n: int, truth: float, sd: float) -> None:
    draws = np.random.default_rng(n + 1).normal(truth, sd, (4000, n))
    half = stats.t.ppf(0.95, n - 1) * draws.std(axis=1, ddof=1) / math.sqrt(n)
    inside = (draws.mean(axis=1) - half > -0.01) & (draws.mean(axis=1) + half < 0.01)
    found = powers.tost_power(n, truth, sd, -0.01, 0.01)
    assert abs(found - inside.mean()) < 4 * math.sqrt(0.25 / 4000)


def test_required_n_of_two_one_sided_tests_is_the_first_that_reaches_the_power() -> None:
    n = powers.tost_required_n(0.012, 0.002, 0.01)
    assert n is not None
    assert powers.tost_power(n, 0.002, 0.012, -0.01, 0.01) >= 0.8
    assert powers.tost_power(n - 1, 0.002, 0.012, -0.01, 0.01) < 0.8
    assert powers.tost_required_n(0.012, 0.01, 0.01) is None
    # Far inside one margin the other does not matter: the one-sided number of pairs.
    assert powers.tost_required_n(0.012, 0.007, 0.01) == powers.required_n(0.012, 0.003)


def test_no_spread_is_decided_by_where_it_lies() -> None:
    assert paired_tests.noninferiority([0.01] * 4, 0.01).verdict == "inconclusive"
    assert paired_tests.noninferiority([0.01] * 4, 0.01).p_value == 0.5
    assert paired_tests.better([0.0] * 4).verdict == "inconclusive"
    assert paired_tests.tost([0.005] * 4, -0.01, 0.01).verdict == "reproduced"
    assert paired_tests.tost([0.01] * 4, -0.01, 0.01).verdict == "inconclusive"
    assert paired_tests.tost([-0.02] * 4, -0.01, 0.01).verdict == "refuted"
    assert powers.tost_power(2, 0.0, 0.0, -0.01, 0.01) == 1.0
    assert powers.tost_power(2, 0.02, 0.0, -0.01, 0.01) == 0.0


@pytest.mark.parametrize("verdict", ["reproduced", "refuted", "inconclusive"])
def test_the_word_for_the_same_follows_the_interval(verdict: str) -> None:
    mean, sd = {"reproduced": (0.0, 0.001), "refuted": (0.03, 0.001), "inconclusive": (0.0, 0.05)}[
        verdict
    ]
    assert paired_tests.tost(sample(5, 6, mean, sd).tolist(), -0.01, 0.01).verdict == verdict
    with pytest.raises(ValueError, match="must be below"):
        paired_tests.tost([0.0, 0.1], 0.01, 0.01)
