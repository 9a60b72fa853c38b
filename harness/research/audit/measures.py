"""How one optimizer's update of a tensor differs from another's: direction, size, size by column.

An update is what a step adds to a parameter, divided by minus the learning rate, without weight
decay; for AdamW that is m-hat / (sqrt(v-hat) + eps). All sums are float64.
"""

import math

from torch import Tensor

DECILES = 10


def compare(update: Tensor, reference: Tensor) -> dict[str, float]:
    """Cosine, ratio of norms, and the root mean squares of two updates of one shape.

    `cosine` and `norm_ratio` are NaN where a norm that they divide by is zero.
    """
    a, b = update.double().flatten(), reference.double().flatten()
    size, reference_size = float(a.norm()), float(b.norm())
    root = math.sqrt(max(1, a.numel()))
    return {
        "cosine": _ratio(float(a @ b), size * reference_size),
        "norm_ratio": _ratio(size, reference_size),
        "update_rms": size / root,
        "adamw_update_rms": reference_size / root,
    }


def as_matrix(tensor: Tensor) -> Tensor:
    """A tensor of at least two dimensions as (rows, columns).

    Columns are the last dimension, of a convolution all dimensions but the first.
    """
    return tensor.flatten(1) if tensor.ndim > 3 else tensor.flatten(0, -2)


def decile_ratios(update: Tensor, reference: Tensor, scale: Tensor) -> list[float]:
    """RMS of an update over that of the reference, by tenths of the columns in rising `scale`.

    Args:
        update: (rows, columns).
        reference: (rows, columns).
        scale: (columns,), by which the columns are ordered.

    Returns:
        Ten ratios, the smallest columns first, NaN where the reference does not move at all; an
        empty list where there are fewer than ten columns.
    """
    if len(scale) < DECILES:
        return []
    order = scale.argsort(stable=True)
    ratios = []
    for members in order.tensor_split(DECILES):
        size = float(update[:, members].double().norm())
        ratios.append(_ratio(size, float(reference[:, members].double().norm())))
    return ratios


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan
