"""What the transcriptions of both second-moment forms share: shapes, gradients, quantiser.

Written from the definitions, in float64 and without the library's chunks and padding.
"""

import math
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gefen.codebook import BINS, optimal_levels

LR, BETA1, BETA2, EPS, DECAY = 0.01, 0.9, 0.99, 1e-8, 0.1
Array = NDArray[np.float64]

# Matrices, stacks of matrices (or, with few rows, of short convolutions) and convolutions.
SHAPES = st.one_of(
    st.tuples(st.integers(1, 6), st.integers(16, 70)),
    st.tuples(st.integers(1, 3), st.integers(1, 18), st.integers(16, 40)),
    st.tuples(st.integers(1, 3), st.integers(2, 4), st.integers(3, 4), st.integers(3, 4)),
)


def matrices(array: NDArray[Any]) -> NDArray[Any]:
    """(experts, rows, columns): stacked matrices as they are, convolutions a row per channel."""
    if array.ndim == 2:
        return array[None]
    if array.ndim == 3 and min(array.shape[1:]) >= 16:
        return array
    return array.reshape(1, array.shape[0], -1)


def equal_slices(columns: int, longest: int, *, even: bool = False) -> list[slice]:
    """A row in as few parts of at most `longest` elements as can be, all but the last equal.

    `even` makes the length even where there are several parts, for two codes in a byte.
    """
    length = math.ceil(columns / math.ceil(columns / longest))
    if even and length < columns:
        length += length % 2
    return [slice(a, min(a + length, columns)) for a in range(0, columns, length)]


def levels_from(values: Array, parts: list[slice]) -> Array:
    """The levels that first gradients teach: `values` (rows, columns), each part over its largest.

    One value in a hundred is spread evenly, so that no first gradient leaves too few levels.
    """
    histogram = np.zeros(BINS, dtype=np.int64)
    for part in parts:
        largest = np.abs(values[:, part]).max(1, keepdims=True)
        some = largest[:, 0] > 0
        histogram += np.histogram(values[some, part] / largest[some], BINS, (-1, 1))[0]
    return optimal_levels(histogram * BINS * 100 + histogram.sum()).astype(np.float64)


def gradients(shape: tuple[int, ...], steps: int, seed: int) -> list[Tensor]:
    """Columns of different sizes, some without any gradient."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.integers(-4, 1, size=shape[-1]) * (rng.random(shape[-1]) > 0.1)
    return [torch.from_numpy(rng.normal(size=shape) * sizes) for _ in range(steps)]
