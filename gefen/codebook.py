"""The codebook of the first moment: histogram and exact optimal levels.

The levels are the exact optimum of a one-dimensional k-means problem in which the levels -1, 0
and 1 are fixed. The cost of a cell is concave-Monge, so a layer of the dynamic programme is
solved by divide and conquer, all nodes of one depth at once.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BINS = 4096
LEVELS = 256

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


def block_histogram(gradient: Tensor, columns: int) -> Tensor:
    """Return the histogram (int64, BINS bins on [-1, 1]) of blocks divided by their maximum.

    `gradient` is (rows, blocks, length), floating point, and is not changed; only the first
    `columns` of blocks x length elements of a row are counted. A block that is all zero or has a
    non-finite value does not count. Histograms of several tensors add up.
    """
    largest = gradient.abs().amax(-1, keepdim=True)
    usable = largest.isfinite() & (largest > 0)
    scaled = gradient / largest
    bins = scaled.add_(1).mul_(BINS // 2).clamp_(0, BINS - 1).long()
    bins.masked_fill_(~usable, BINS)
    bins = bins.flatten(1)[:, :columns]
    return torch.bincount(bins.reshape(-1), minlength=BINS + 1)[:BINS]


def optimal_levels(histogram: NDArray[Any], count: int = LEVELS) -> NDArray[np.float32]:
    """Return the levels that minimise the histogram's squared quantisation error.

    `histogram` holds the integer weights (up to 2**40 in all) of an even number of equal bins on
    [-1, 1], represented by their centres; `count` >= 3 levels may be used, among them -1, 0 and
    1 always. The result is strictly increasing float32, shorter than `count` where fewer levels
    reach the optimum. Ties take the smaller index, so the result is deterministic.

    Both halves are mirror images: starting at the outer level, cells of a left-to-right programme
    cover the bins up to where the cell of 0 begins. Costs are written as gains over quantising to
    0, so that the cell of 0 contributes nothing and its border is where the gain is largest.
    """
    weights = np.asarray(histogram).astype(np.float64)
    bins = weights.size
    if bins % 2 or count < 3:
        raise ValueError(
            f"optimal_levels needs an even number of bins and count >= 3, not {bins} bins "
            f"and count = {count}"
        )
    position = np.arange(1 - bins, bins, 2, dtype=np.float64)
    occupied, free = weights > 0, count - 3
    if occupied.sum() <= free:
        levels = [position[occupied & (position < 0)], position[occupied & (position > 0)]]
    else:
        programme = _Programme(weights, position)
        split = programme.solve(free)
        levels = [
            programme.free_levels(0, split),
            -programme.free_levels(1, free - split)[::-1],
        ]
    fixed = np.array([-1.0]), np.array([0.0]), np.array([1.0])
    joined = np.concatenate([fixed[0], levels[0] / bins, fixed[1], levels[1] / bins, fixed[2]])
    return joined.astype(np.float32)


def _occupied(weights: _Floats, position: _Floats) -> tuple[_Floats, _Floats]:
    return weights[weights > 0], position[weights > 0]


class _Programme:
    """The dynamic programme on both halves at once, stored one after the other.

    Units: a bin's centre is `position / bins`, position an odd integer in (-bins, bins), negative
    on both sides here; sums of weights and of weighted positions are integers and exact in
    float64. Empty bins are left out. Each side has half + 2 entries: prefixes of 0..half bins
    (the shorter side repeats its last), and one sentinel for the search bounds.
    """

    def __init__(self, weights: _Floats, position: _Floats) -> None:
        bins = weights.size
        inward = position < 0
        sides = [
            _occupied(weights[inward], position[inward]),
            _occupied(weights[~inward][::-1], -position[~inward][::-1]),
        ]
        self.half = max(1, *(len(values) for values, _ in sides))
        self.stride = self.half + 2
        self.weight = self._prefix([values for values, _ in sides])
        self.moment = self._prefix([values * place for values, place in sides])
        self.gains = [-bins * (2 * self.moment + bins * self.weight)]
        self.starts: list[_Ints] = []
        self.schedule = self._schedule()

    def _prefix(self, sides: list[_Floats]) -> _Floats:
        sums = np.zeros((2, self.stride))
        for row, values in zip(sums, sides, strict=True):
            row[1 : len(values) + 1] = np.cumsum(values)
            row[len(values) + 1 :] = row[len(values)]
        return sums.reshape(-1)

    def _schedule(self) -> list[tuple[_Ints, _Ints, _Ints]]:
        """Nodes of each depth with the solved nodes on either side of them."""
        depths = []
        step = 1 << (self.half.bit_length() - 1)
        offsets = np.array([[0], [self.stride]])
        while step:
            node = np.arange(step, self.half + 1, 2 * step)
            right = np.where(node + step <= self.half, node + step, self.half + 1)
            depths.append(
                tuple((side + offsets).reshape(-1) for side in (node, node - step, right))
            )
            step //= 2
        return depths

    def _ends(self, gain: _Floats) -> tuple[_Ints, _Floats]:
        """Where the cell of 0 begins on each side, and the gain reached there."""
        table = gain.reshape(2, self.stride)[:, : self.half + 1]
        end = table.argmax(axis=1)
        return end, table[[0, 1], end]

    def solve(self, free: int) -> int:
        """Add layers until the best split of `free` levels is known; return the left side's share.

        The gain is concave in the number of levels of a side (Monge costs), so a best split
        strictly inside the splits that the layers so far can form is the best of all.
        """
        best = [self._ends(self.gains[0])[1]]
        while True:
            layers = len(best) - 1
            low, high = max(0, free - layers), min(free, layers)
            if low <= high:
                table = np.array(best)
                share = np.arange(low, high + 1)
                split = int(share[np.argmax(table[share, 0] + table[free - share, 1])])
                if layers >= free or low < split < high:
                    return split
            self._add_layer()
            best.append(self._ends(self.gains[-1])[1])

    def _add_layer(self) -> None:
        """One more free cell: the best start of the cell that ends before each node."""
        previous, weight, moment = self.gains[-1], self.weight, self.moment
        gain = previous.copy()
        start = np.zeros(2 * self.stride, dtype=np.int64)
        start[self.stride] = self.stride
        start[[self.half + 1, self.stride + self.half + 1]] = self.half, self.stride + self.half
        for node, left, right in self.schedule:
            low = start[left]
            length = np.minimum(start[right], node) - low + 1
            first = np.cumsum(length) - length
            candidate = np.arange(first[-1] + length[-1]) + np.repeat(low - first, length)
            sums = np.repeat(moment[node], length) - moment[candidate]
            mass = np.repeat(weight[node], length) - weight[candidate]
            np.maximum(mass, 1.0, out=mass)
            sums *= sums
            sums /= mass
            sums += previous[candidate]
            top = np.maximum.reduceat(sums, first)
            hits = np.flatnonzero(sums == np.repeat(top, length))
            start[node] = candidate[hits[np.searchsorted(hits, first)]]
            gain[node] = top
        self.gains.append(gain)
        self.starts.append(start)

    def free_levels(self, side: int, layers: int) -> _Floats:
        """Mean positions of one side's cells with `layers` free levels, outermost first."""
        offset = side * self.stride
        stop = int(self._ends(self.gains[layers])[0][side]) + offset
        levels = []
        for start in reversed(self.starts[:layers]):
            begin = int(start[stop])
            mass = self.weight[stop] - self.weight[begin]
            if mass > 0:
                levels.append((self.moment[stop] - self.moment[begin]) / mass)
            stop = begin
        return np.array(levels[::-1], dtype=np.float64)
