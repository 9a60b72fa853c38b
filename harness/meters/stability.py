"""Stability of a run: loss spikes, divergence, and the size of updates."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

# A loss that hardly moves has a deviation near zero; rounding noise in it is no spike.
RELATIVE_DEVIATION_FLOOR = 1e-4
LEAST_LOSSES = 5  # below, a line through losses says nothing about their spread


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
    diverged when a loss is not finite, or when `divergence_window` losses in a row lie above the
    first one. `diverged` stays true.
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
        self._initial: float | None = None
        self._above_initial = 0
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
        if self._initial is None:
            self._initial = loss
        self._above_initial = self._above_initial + 1 if loss > self._initial else 0
        self.diverged = self.diverged or self._above_initial >= self.divergence_window
        self._watch_for_spike(step, loss)
        self._recent.append(loss)

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
            "initial": self._initial,
            "above_initial": self._above_initial,
            "steps": self._steps,
            "reference": self._reference,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.diverged = state["diverged"]
        self.spikes = [Spike(**spike) for spike in state["spikes"]]
        self._recent = deque(state["recent"], maxlen=self.window)
        self._initial, self._above_initial = state["initial"], state["above_initial"]
        self._steps, self._reference = state["steps"], state["reference"]


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
