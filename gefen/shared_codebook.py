"""The one codebook of an optimizer: learned once, one storage for all parameters of a device."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gefen.codebook import LEVELS, optimal_levels
from gefen.codes import Codes, is_learned, padded_codebook


class SharedCodebook:
    """Hands out the codebook's storage for the state, fills it once, and prepares its codes.

    Until it is learned the codebook is all zero, so that state has its final shapes from the
    start. Parameters on several devices share one storage on each.
    """

    def __init__(self) -> None:
        self.learned = False
        self._storages: dict[torch.device, Tensor] = {}
        self._codes: dict[tuple[torch.device, torch.dtype], Codes] = {}

    @classmethod
    def from_states(cls, states: Iterable[dict[str, Any]]) -> "SharedCodebook":
        """Take over the equal codebooks of loaded or copied states, which then share it."""
        shared = cls()
        for state in states:
            codebook = state["codebook"]
            state["codebook"] = shared._storages.setdefault(codebook.device, codebook)
        shared.learned = any(is_learned(codebook) for codebook in shared._storages.values())
        return shared

    def storage(self, device: torch.device) -> Tensor:
        """Return the codebook on a device, float32 (256), to be kept in the state."""
        if device not in self._storages:
            known = next(iter(self._storages.values()), torch.zeros(LEVELS, dtype=torch.float32))
            self._storages[device] = known.to(device)
        return self._storages[device]

    def learn(self, histogram: Tensor) -> None:
        """Fill the codebook from a CPU histogram (int64, BINS), unless that is empty."""
        if histogram.any():
            codebook = padded_codebook(optimal_levels(histogram.numpy()))
            for storage in self._storages.values():
                storage.copy_(codebook)
            self.learned = True

    def codes(self, device: torch.device, dtype: torch.dtype) -> Codes:
        """Return the learned codebook made ready for a device and working dtype."""
        key = (device, dtype)
        if key not in self._codes:
            self._codes[key] = Codes.build(self._storages[device].cpu(), device, dtype)
        return self._codes[key]
