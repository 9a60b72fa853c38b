"""Where a loss curve first reaches a target: one definition, for records and for reports."""

from collections.abc import Sequence

ROUNDING = 1e-12  # relative; a curve that ends at its own last value reaches it


def first_crossing(x: Sequence[float], losses: Sequence[float], target: float) -> float | None:
    """The first `x` at which `losses`, linear between its points, is at or below `target`.

    `x` (tokens, seconds or steps, ascending) and `losses` (nats/token) have equal lengths; a loss
    that is not finite is above every target, and no line leads down from it: the crossing is then
    at the point after it. None where the target is never reached. Raises ValueError for unequal
    lengths.
    """
    limit = target + ROUNDING * max(1.0, abs(target))
    before: tuple[float, float] | None = None
    for at, loss in zip(x, losses, strict=True):
        if loss <= limit:
            if before is None or not before[1] < float("inf"):
                return float(at)
            share = (before[1] - target) / (before[1] - loss)
            return float(before[0] + min(1.0, share) * (at - before[0]))
        before = (at, loss)
    return None
