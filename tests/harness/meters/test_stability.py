"""LossWatch on planted spikes, NaN and rising losses; update RMS against numpy."""

import json
import math
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from scipy.stats import theilslopes

from harness.meters.stability import (
    LossWatch,
    Spike,
    UpdateMeter,
    highest_honest_loss,
    robust_line,
    update_rms,
)


def feed(watch: LossWatch, losses: list[float]) -> LossWatch:
    for loss in losses:
        watch.update(loss)
    return watch


def falling_loss(steps: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.02, steps)
    return 4 + 4 * np.exp(-np.arange(steps) / 100) + noise


def test_planted_spikes_are_found_with_depth_and_recovery() -> None:
    losses = falling_loss(400)
    clean = losses.copy()
    losses[150] += 1.5
    losses[300:306] += [0.8, 1.6, 1.2, 0.9, 0.8, 0.7]
    watch = feed(LossWatch(50, 8.0, 50), losses.tolist())
    assert [(spike.step, spike.recovery_steps) for spike in watch.spikes] == [(150, 1), (300, 6)]
    # Above what the loss would have been, to its noise (sd 0.02): what was planted.
    assert [spike.depth for spike in watch.spikes] == pytest.approx([1.5, 1.6], abs=0.1)
    assert watch.spikes_total == 2
    assert not watch.diverged
    assert feed(LossWatch(50, 8.0, 50), clean.tolist()).spikes_total == 0


@pytest.mark.parametrize("at", [26, 30, 45, 60, 100, 200])
def test_spikes_early_on_a_falling_loss_are_found(at: int) -> None:
    """The fall of a first third: a rolling median and its deviation saw nothing before step 100."""
    noise = np.random.default_rng(at).normal(0, 0.06, 250)
    losses = 6.2 + 2.1 * np.exp(-np.arange(250) / 40) + noise
    assert feed(LossWatch(50, 8.0, 50), losses.tolist()).spikes_total == 0
    planted = losses.copy()
    planted[at] += 0.8
    watch = feed(LossWatch(50, 8.0, 50), planted.tolist())
    assert [spike.step for spike in watch.spikes] == [at]
    assert watch.spikes[0].depth == pytest.approx(0.8, abs=0.3)


def test_counting_starts_where_the_watch_says() -> None:
    for window, start in ((50, 25), (10, 5), (4, 4), (2, 2)):
        falling = list(4 - 0.01 * np.arange(60))
        for step, seen in ((start - 1, 0), (start, 1)):
            watch = LossWatch(window, 8.0, 50)
            assert watch.counts_from == start
            assert feed(watch, [*falling[:step], 9.0]).spikes_total == seen


def test_the_robust_line_is_theil_and_sens_and_never_rises() -> None:
    values = falling_loss(50, seed=3)
    values[[20, 21, 40]] += 3.0
    slope, _, _, _ = theilslopes(values, np.arange(50))
    height = np.median(values - slope * (np.arange(50) - 50))
    spread = np.median(np.abs(values - slope * (np.arange(50) - 50) - height))
    assert robust_line(values.tolist()) == pytest.approx((height, spread))
    rising = np.arange(21.0)
    assert robust_line(rising.tolist()) == (10.0, 5.0)  # median, and its median deviation
    with pytest.raises(ValueError, match="1 given"):
        robust_line([1.0])


def test_open_spike_has_no_recovery() -> None:
    watch = feed(LossWatch(10, 8.0, 50), [*falling_loss(30), 9.0])
    assert watch.spikes_total == 1
    assert watch.spikes[0].recovery_steps is None


def test_rounding_noise_on_a_flat_loss_is_no_spike() -> None:
    flat = [2.0, 2.0 + 1e-7] * 50
    assert feed(LossWatch(20, 8.0, 50), flat).spikes_total == 0
    assert feed(LossWatch(20, 8.0, 50), [*flat, 2.01]).spikes_total == 1


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 20), st.integers(0, 5))
def test_spikes_do_not_depend_on_the_scale_of_the_loss(scale: float, seed: int) -> None:
    losses = falling_loss(450, seed)[300:]
    losses[[60, 100]] += 1.0
    plain = feed(LossWatch(40, 8.0, 50), losses.tolist())
    scaled = feed(LossWatch(40, 8.0, 50), (losses * scale).tolist())
    assert [spike.step for spike in plain.spikes] == [spike.step for spike in scaled.spikes]
    assert {60, 100} <= {spike.step for spike in plain.spikes}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_loss_is_divergence_and_stays_so(bad: float) -> None:
    watch = feed(LossWatch(10, 8.0, 20), [3.0, 2.9])
    assert not watch.diverged
    watch.update(bad)
    assert watch.diverged
    assert feed(watch, [2.8] * 30).diverged


def test_rising_loss_diverges_only_after_a_whole_window() -> None:
    start = [5.0, 5.2] * 10  # median 5.1, differences of 0.2: noise of 0.177, bound 5.45
    assert highest_honest_loss(start) == pytest.approx(5.1 + 2 * 0.2 * math.sqrt(math.pi) / 2)
    rising = [*start, *np.linspace(10.0, 14.0, 20)]
    watch = feed(LossWatch(10, 8.0, 20), rising[:-1])
    assert not watch.diverged
    watch.update(rising[-1])
    assert watch.diverged
    # 19 means above the bound, ten of lower losses, and 19 again.
    interrupted = [*start, *[8.0] * 10, *[4.0] * 20, *[8.0] * 10, *[4.0] * 20]
    assert not feed(LossWatch(10, 8.0, 20), interrupted).diverged


def bounds(losses: np.ndarray) -> np.ndarray:
    """`highest_honest_loss` of each row as its docstring has it."""
    start = losses[:, :20]
    noise = np.abs(np.diff(start)).mean(1) * math.sqrt(math.pi) / 2
    noise = np.minimum(noise, np.maximum(0.75, start[:, 0] / 4))
    return np.minimum(np.median(start, 1) + 2 * noise, start[:, 0] + 5 * noise)


def longest_streaks(above: np.ndarray) -> np.ndarray:
    """The most true values in a row, for each row."""
    longest = run = np.zeros(len(above), dtype=int)
    for column in above.T:
        run = np.where(column, run + 1, 0)
        longest = np.maximum(longest, run)
    return longest


def diverged(losses: np.ndarray, window: int) -> np.ndarray:
    """Which rows of losses the rule calls diverged, all at once."""
    means = sliding_window_view(losses[:, 11:], 10, axis=1).mean(2)
    return longest_streaks(means > bounds(losses)[:, None]) >= window


def above_the_first(losses: np.ndarray, window: int) -> np.ndarray:
    """What the rule replaced: a whole window of losses above the first one."""
    return longest_streaks(losses[:, 1:] > losses[:, :1]) >= window


@pytest.mark.parametrize("noise", [0.24, 0.6])
def test_noisy_batches_are_not_taken_for_divergence(noise: float) -> None:
    """Runs that learn nothing are the worst case: one false alarm in 10,000 at most."""
    generator = np.random.default_rng(0)
    losses = 5.5 + noise * generator.standard_normal((10_000, 300))
    assert diverged(losses, 50).sum() <= 1
    assert above_the_first(losses[:1000], 50).sum() > 50
    # Slowly learning, as a real run: the old rule errs still.
    learning = losses - 3 * (1 - np.exp(-np.arange(300) / 1000))
    assert diverged(learning, 50).sum() == 0
    assert above_the_first(learning, 50).sum() > 20


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6), st.floats(0.01, 3), st.floats(-3, 6), st.integers(0, 80), st.just(100)
)
def test_the_watch_follows_the_rule(
    seed: int, noise: float, rise: float, at: int, steps: int
) -> None:
    losses = 5.0 + noise * np.random.default_rng(seed).standard_normal(steps)
    losses[at:] += rise
    watch = feed(LossWatch(5, 8.0, 30), losses.tolist())
    assert watch.diverged == diverged(losses[None, :], 30)[0]
    assert highest_honest_loss(losses[:20].tolist()) == pytest.approx(bounds(losses[None, :])[0])


def perceptron_losses(rate: float, warmup: int, seed: int, steps: int = 100) -> Iterator[float]:
    """SGD with momentum on noisy labels of 64 classes, 8 examples a batch; 0.1 is a good rate."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(64, 48, generator=generator)
    weights = [table, torch.randn(48, 64, generator=generator) / 7]
    weights.append(torch.randn(64, 64, generator=generator) / 8)
    for weight in weights:
        weight.requires_grad_()
    optimizer = torch.optim.SGD(weights, lr=rate, momentum=0.9)
    labels = torch.randperm(64, generator=generator)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / max(1, warmup))
        inputs = torch.randint(0, 64, (8,), generator=generator)
        others = torch.randint(0, 64, (8,), generator=generator)
        wrong = torch.rand(8, generator=generator) < 0.3
        scores = torch.relu(weights[0][inputs] @ weights[1]) @ weights[2]
        targets = torch.where(wrong, others, labels[inputs])
        loss = torch.nn.functional.cross_entropy(scores, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def diverges(losses: Iterable[float]) -> bool:
    """Whether a watch with the default settings stops this run."""
    watch = LossWatch(50, 8.0, 50)
    for loss in losses:
        watch.update(loss)
        if watch.diverged:
            return True
    return False


@pytest.mark.parametrize("warmup", [0, 30])
def test_rates_that_are_far_too_high_are_caught_within_100_steps(warmup: int) -> None:
    for seed in range(2):
        assert not diverges(perceptron_losses(0.1, warmup, seed))
        for factor in (4, 8, 16, 32, 64):
            assert diverges(perceptron_losses(0.1 * factor, warmup, seed)), (seed, factor)


@pytest.mark.parametrize("noise", [0.24, 0.6])
@pytest.mark.parametrize("onset", [0, 10, 40])
def test_a_finite_divergence_is_caught_within_100_steps(noise: float, onset: int) -> None:
    """From the onset on the loss climbs by 0.1 nats a step to 8 nats above the start."""
    losses = 5.5 + noise * np.random.default_rng(1).standard_normal((1000, onset + 101))
    losses[:, :onset] -= 0.01 * np.arange(onset)
    losses[:, onset:] += np.minimum(8.0, 0.1 * np.arange(101))
    assert diverged(losses, 50).mean() > 0.99


def test_watch_goes_on_after_a_checkpoint() -> None:
    losses = falling_loss(200)
    losses[[70, 99, 100, 150]] += 2.0
    whole = feed(LossWatch(30, 8.0, 40), losses.tolist())
    first = feed(LossWatch(30, 8.0, 40), losses[:100].tolist())
    second = LossWatch(30, 8.0, 40)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    feed(second, losses[100:].tolist())
    assert second.spikes == whole.spikes
    assert second.state_dict() == whole.state_dict()
    assert whole.spikes[1] == Spike(99, whole.spikes[1].depth, 2)


@pytest.mark.parametrize("arguments", [(0, 8.0, 5), (5, 0.0, 5), (5, math.nan, 5), (5, 8.0, 0)])
def test_bad_settings_are_refused(arguments: tuple[int, float, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        LossWatch(*arguments)


def test_update_rms_equals_numpy() -> None:
    generator = np.random.default_rng(0)
    shapes = [(3, 4), (5,), ()]
    before = [generator.normal(size=shape) for shape in shapes]
    change = [generator.normal(size=shape) * 1e-2 for shape in shapes]
    expected = math.sqrt(np.mean(np.concatenate([np.ravel(c) for c in change]) ** 2))
    old = [torch.tensor(b) for b in before]
    new = [torch.tensor(b + c) for b, c in zip(before, change, strict=True)]
    assert update_rms(old, new) == pytest.approx(expected, rel=1e-4)
    assert update_rms([], []) == 0.0
    with pytest.raises(ValueError, match="shorter"):
        update_rms(old, new[:-1])


def test_update_rms_of_bfloat16_is_summed_in_float() -> None:
    old = torch.zeros(100_000, dtype=torch.bfloat16)
    assert update_rms([old], [old + 0.5]) == pytest.approx(0.5, rel=1e-6)


def test_the_update_meter_is_exact_below_its_limit_and_close_above_it() -> None:
    """Columns that move by their number: a stride that shared a factor with the rows would err."""
    rows, columns = 257, 64
    change = torch.arange(columns, dtype=torch.float32).repeat(rows, 1) * 1e-3
    expected = float(change.square().mean().sqrt())
    for limit, stride in ((rows * columns + 70, 1), (2000, 11), (520, 37)):
        parameters = [torch.zeros(70), torch.zeros(rows, columns)]
        meter = UpdateMeter(parameters, limit)
        meter.before()
        parameters[1].add_(change)
        assert meter.stride == stride
        share = rows * columns / (rows * columns + 70)
        tolerance = 1e-5 if stride == 1 else 0.03
        assert meter.after() == pytest.approx(expected * math.sqrt(share), rel=tolerance)


def test_the_update_meter_keeps_a_bounded_copy() -> None:
    meter = UpdateMeter([torch.zeros(1000), torch.zeros(7, 1001)], limit=100)
    meter.before()
    assert sum(part.numel() for part in meter._sample) <= 102
    meter.after()
    assert meter._sample == []
