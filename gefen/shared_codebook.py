"""The codebooks of an optimizer: learned once, one storage for all parameters of a device."""

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from gefen.codebook import optimal_levels
from gefen.codes import Codes, is_learned, padded_codebook
from gefen.sharding import local, wrap


class SharedCodebook:
    """Hands out a codebook's storage for the state, fills it once, and prepares its codes.

    Until it is learned the codebook is all zero, so that state has its final shapes from the
    start. Parameters on several devices share one storage on each.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.learned = False
        self._storages: dict[torch.device, Tensor] = {}
        self._codes: dict[tuple[torch.device, torch.dtype, bool], Codes] = {}

    def adopt(self, owner: Tensor, state: MutableMapping[str, Any]) -> None:
        """Take over the codebook of a loaded or copied state, or give it the one already here."""
        codebook = local(state["codebook"])
        storage = self._storages.setdefault(codebook.device, codebook)
        state["codebook"] = wrap(owner, storage, (self.count,), follow=False)
        self.learned = self.learned or is_learned(storage)

    def storage(self, device: torch.device) -> Tensor:
        """Return the codebook on a device, float32 (count), to be kept in the state."""
        if device not in self._storages:
            known = next(
                iter(self._storages.values()), torch.zeros(self.count, dtype=torch.float32)
            )
            self._storages[device] = known.to(device)
        return self._storages[device]

    def learn(self, histogram: Tensor) -> None:
        """Fill the codebook from a CPU histogram (int64, BINS), unless that is empty."""
        if histogram.any():
            codebook = padded_codebook(optimal_levels(histogram.numpy(), self.count), self.count)
            for storage in self._storages.values():
                storage.copy_(codebook)
            self.learned = True

    def codes(self, device: torch.device, dtype: torch.dtype, stochastic: bool) -> Codes:
        """Return the learned codebook made ready for a device and working dtype."""
        key = (device, dtype, stochastic)
        if key not in self._codes:
            codebook = self._storages[device].cpu()
            self._codes[key] = Codes.build(codebook, device, dtype, stochastic=stochastic)
        return self._codes[key]


class Codebooks:
    """One codebook for each number of bits that the parameter groups ask for."""

    def __init__(self) -> None:
        self._by_bits: dict[int, SharedCodebook] = {}

    @classmethod
    def from_states(
        cls, states: Iterable[tuple[Tensor, Mapping[str, Any], MutableMapping[str, Any]]]
    ) -> "Codebooks":
        """Take over the codebooks of (parameter, group, state), which then share them."""
        codebooks = cls()
        for owner, group, state in states:
            if "codebook" in state:
                codebooks[group["first_moment_bits"]].adopt(owner, state)
        return codebooks

    def __getitem__(self, bits: int) -> SharedCodebook:
        """Return the codebook of 2^bits levels."""
        return self._by_bits.setdefault(bits, SharedCodebook(1 << bits))
