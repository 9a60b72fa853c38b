"""Stopwatch, frozen collector and summaries against known durations and numpy."""

import gc
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.meters.timing import Stopwatch, Total, frozen_gc, summarize, synchronize


def test_stopwatch_measures_a_sleep() -> None:
    with Stopwatch() as watch:
        assert math.isnan(watch.seconds)
        time.sleep(0.1)
    assert 0.1 <= watch.seconds < 0.15


def test_stopwatch_keeps_the_time_of_failed_work() -> None:
    def fail_late() -> None:
        time.sleep(0.02)
        raise ZeroDivisionError

    watch = Stopwatch("cpu")
    with pytest.raises(ZeroDivisionError), watch:
        fail_late()
    assert watch.seconds >= 0.02


def test_synchronize_does_nothing_on_cpu() -> None:
    synchronize("cpu")


@pytest.mark.parametrize("enabled", [True, False])
def test_frozen_gc_restores_the_collector(enabled: bool) -> None:
    before = gc.isenabled()

    def look() -> None:
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 1000
        raise KeyError

    try:
        gc.enable() if enabled else gc.disable()
        with pytest.raises(KeyError), frozen_gc():
            look()
        assert gc.isenabled() is enabled
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable() if before else gc.disable()


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40))
def test_summary_equals_numpy_percentiles(seconds: list[float]) -> None:
    p10, median, p90 = np.percentile(seconds, [10, 50, 90])
    expected = {"median": median, "p10": p10, "p90": p90}
    assert summarize(seconds) == pytest.approx(expected, rel=1e-9)


def test_summary_of_nothing_is_nan() -> None:
    assert all(math.isnan(value) for value in summarize([]).values())


def test_a_total_adds_up_sleeps_and_refuses_to_count_twice() -> None:
    total = Total()
    for _ in range(2):
        with total:
            time.sleep(0.05)
        time.sleep(0.05)
    assert 0.1 <= total.seconds < 0.15
    with total, pytest.raises(RuntimeError, match="count twice"):
        total.__enter__()
