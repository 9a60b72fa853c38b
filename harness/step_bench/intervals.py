"""Student's t interval without scipy, which the GPU check does not ask for."""

import math
import statistics
from collections.abc import Sequence

# Two-sided 95 % quantiles for 1 to 30 degrees of freedom.
T_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of independent values; infinite for fewer than two."""
    freedom = len(values) - 1
    if freedom < 1:
        return -math.inf, math.inf
    # Above 30 two terms of the Cornish-Fisher expansion are exact to four digits.
    expansion = 1.95996 + 2.37227 / freedom + 2.8225 / freedom**2
    quantile = T_975[freedom - 1] if freedom <= len(T_975) else expansion
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float]
) -> tuple[float, float, float]:
    """Geometric mean of paired ratios and its 95 % interval, from the t interval of their logs."""
    logs = [math.log(a / b) for a, b in zip(numerators, denominators, strict=True)]
    low, high = t_interval(logs)
    return math.exp(statistics.fmean(logs)), math.exp(low), math.exp(high)
