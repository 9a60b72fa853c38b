"""Noise added to gradients, so that loss spikes have a cause that every optimizer sees alike."""

from collections.abc import Iterable

import numpy as np
import torch


@torch.no_grad()
def add_noise(
    parameters: Iterable[torch.nn.Parameter], noise: float, data_seed: int, step: int
) -> None:
    """Replace each gradient g by g + `noise` x rms(g) x N(0, 1), in place.

    rms(g) is the root of the mean square over the tensor, N(0, 1) a draw for each element, so that
    the added part has `noise` times the norm of the gradient. The draws of a tensor depend on
    `data_seed`, `step` (0-based) and its place among `parameters` alone: paired runs see the same
    ones whatever their optimizer, and so does a run that is resumed. They are made on the CPU in
    float32, so that devices agree. A tensor without a gradient is left out, but counts as a place;
    a gradient that is not finite makes all of its tensor so.
    """
    for index, parameter in enumerate(parameters):
        gradient = parameter.grad
        if gradient is None:
            continue
        generator = torch.Generator().manual_seed(_seed(data_seed, step, index))
        drawn = torch.randn(gradient.shape, generator=generator).to(gradient.device)
        rms = gradient.float().square().mean().sqrt()
        gradient.add_(drawn.mul_(noise * rms))


def _seed(data_seed: int, step: int, index: int) -> int:
    """One number from three, without the collisions that a sum of them would have."""
    return int(np.random.SeedSequence((data_seed, step, index)).generate_state(1, np.uint64)[0])
