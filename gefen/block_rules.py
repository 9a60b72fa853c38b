"""The published rules that choose the elements of a block from the first gradient.

Source: N. Benedek, T. Koren, O. Fried, arXiv 2606.13894 (2026): `paper` (versions up to 1.1 of
the authors' package, by the spread of the squared gradient within a block) and `peak` (versions
from 1.2, by the jumps between neighbouring blocks). They are options "as published": `paper`
compares with the constant 1e-12 and `peak` adds 1e-12 to the squared gradient, so that the
answers depend on the scale of the gradient.

A block is p consecutive elements in row-major order, p a divisor of the number of elements. The
mean of a block is the mean of the means of its q parts, q its smallest prime factor, which makes
all divisors together little dearer than one reading of the gradient for each prime factor.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

MAX_GROUP = 256
_MAX_PEAK = 1024
_MIN_PEAK_BLOCKS = 4
_SMALL_BLOCK = 8
_CHUNK_ELEMENTS = 1 << 20

_Values = Callable[[Tensor], Tensor]
_Level = tuple[int, int, float, Tensor]


def block_length(gradient: Tensor, rule: str) -> int:
    """Return how many consecutive elements of a parameter share a second moment.

    `gradient` is real floating point of any shape and strides, `rule` is "paper" or "peak". The
    result divides the number of elements n and is smaller than n for n > 1. Sums are float64.
    With a non-finite element the answer is 1. ValueError for another rule.

    Scratch memory: about n float64 values, and a copy of a gradient that is not contiguous.
    """
    if rule not in ("paper", "peak"):
        raise ValueError(f"rule must be 'paper' or 'peak', not {rule!r}")
    flat = gradient.detach().reshape(-1)
    if flat.numel() < 2:
        return 1
    return _paper_length(flat) if rule == "paper" else _peak_length(flat)


def group_length(count: int, block: int) -> int:
    """Return how many elements of a parameter of `count` elements share a first-moment scale.

    The block for blocks of more than one element, otherwise the largest divisor of `count` up to
    256. ValueError where `block` does not divide `count`.
    """
    if block < 1 or count % block:
        raise ValueError(f"block = {block} must divide the number of elements, {count}")
    if block > 1 or count == 0:
        return block
    return max(p for p in divisors(count) if p <= MAX_GROUP)


def divisors(count: int) -> list[int]:
    """Return the divisors of a positive integer, ascending."""
    small = [p for p in range(1, math.isqrt(count) + 1) if count % p == 0]
    return small + [count // p for p in reversed(small) if p * p != count]


def _paper_length(flat: Tensor) -> int:
    """The p with the smallest e(p) - e(previous p), e the root of the mean variance in a block."""
    count = flat.numel()
    within = {1: 0.0}
    for p, q, deviation, _ in _levels(flat, _square, count // 2):
        # Splitting a variance: that within the parts of a block and that of the parts' means.
        within[p] = within[p // q] + deviation * (p // q) / count
    best, smallest, previous = 1, 1e-12, 0.0
    for p in sorted(within)[1:]:
        spread = math.sqrt(within[p])
        if spread - previous < smallest:
            best, smallest = p, spread - previous
        previous = spread
    return best if best >= _SMALL_BLOCK else 1


def _peak_length(flat: Tensor) -> int:
    """The p > 8 whose blocks jump most, among strict local maxima of the mean jump."""
    count = flat.numel()
    limit = count // _MIN_PEAK_BLOCKS
    jumps = {1: _mean_jump(flat, _logarithm)}
    for p, _, _, means in _levels(flat, _logarithm, limit):
        jumps[p] = _mean_jump(means, _same)
    candidates = sorted(jumps)
    peaks = [
        p
        for before, p, after in zip(candidates, candidates[1:], candidates[2:], strict=False)
        if p > _SMALL_BLOCK and jumps[before] < jumps[p] > jumps[after]
    ]
    best = max(peaks, key=lambda p: jumps[p], default=1)
    if best <= _MAX_PEAK:
        return best
    return min(p for p in divisors(best) if p > _MAX_PEAK)


def _square(gradient: Tensor) -> Tensor:
    return gradient.double().square()


def _logarithm(gradient: Tensor) -> Tensor:
    return gradient.double().square().add_(1e-12).log_()


def _same(values: Tensor) -> Tensor:
    return values


def _levels(flat: Tensor, values: _Values, limit: int) -> Iterator[_Level]:
    """Yield (p, q, deviation, means) for the divisors 1 < p <= limit, a part before its wholes.

    q is the smallest prime factor of p; `means` (float64, one for each block) is of `values` over
    blocks of p; `deviation` is the sum of the squared differences between the means of p / q
    elements and those of p.
    """
    count = flat.numel()
    primes = [p for p in divisors(count)[1:] if all(p % q for q in range(2, math.isqrt(p) + 1))]

    def descend(parts: Tensor, values: _Values, part: int, largest: int) -> Iterator[_Level]:
        for q in primes:
            p = part * q
            if q <= largest and count % p == 0 and p <= limit:
                means, deviation = _join(parts, values, q)
                yield p, q, deviation, means
                yield from descend(means, _same, p, q)

    yield from descend(flat, values, 1, count)


def _join(parts: Tensor, values: _Values, q: int) -> tuple[Tensor, float]:
    """Return the means (float64) of each q consecutive values and the squared deviations' sum."""
    means = torch.empty(parts.numel() // q, dtype=torch.float64, device=parts.device)
    deviation = torch.zeros((), dtype=torch.float64, device=parts.device)
    step = max(1, _CHUNK_ELEMENTS // q)
    for chunk, out in zip(parts.view(-1, q).split(step), means.split(step), strict=True):
        block = values(chunk)
        # Relative to the first part, so that the mean of equal parts is exactly that part.
        shifted = block - block[:, :1]
        centre = shifted.mean(-1, keepdim=True)
        torch.add(block[:, 0], centre[:, 0], out=out)
        deviation += shifted.sub_(centre).square_().sum()
    return means, deviation.item()


def _mean_jump(parts: Tensor, values: _Values) -> float:
    """Return the mean of |difference| between neighbouring values."""
    total = torch.zeros((), dtype=torch.float64, device=parts.device)
    for start in range(0, parts.numel() - 1, _CHUNK_ELEMENTS):
        total += values(parts[start : start + _CHUNK_ELEMENTS + 1]).diff().abs_().sum()
    return total.item() / max(1, parts.numel() - 1)
