"""The codebooks of an optimizer: learned once, one storage for all parameters of a device."""

from collections.abc import Hashable, Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from gefen.codebook import optimal_levels
from gefen.codes import Codes, is_learned, padded_codebook
from gefen.sharding import local, mesh_of, wrap

_FLOOR = 100  # one value in so many is spread evenly


def with_floor(histogram: Tensor) -> Tensor:
    """Return a histogram (int64) to which one value in a hundred was added, spread evenly.

    A gradient of rank one (a batch of one, say) falls into two bins; later ones need levels
    between. Small histograms are scaled up, so that a whole number a bin is never more than that.
    """
    least = _FLOOR * histogram.numel()
    scaled = histogram * -(-least // int(histogram.sum()))
    return scaled + scaled.sum() // least


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
            codebook = padded_codebook(
                optimal_levels(with_floor(histogram).numpy(), self.count), self.count
            )
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
    """One codebook for each number of bits and each mesh of DTensor parameters.

    Ranks that share a mesh learn from the same histogram, so they agree on its codebook, whatever
    plain parameters or other meshes each of them holds beside it.
    """

    def __init__(self) -> None:
        self._by_key: dict[tuple[int, Hashable], SharedCodebook] = {}

    @classmethod
    def from_states(
        cls, states: Iterable[tuple[Tensor, Mapping[str, Any], MutableMapping[str, Any]]]
    ) -> "Codebooks":
        """Take over the codebooks of (parameter, group, state), which then share them."""
        codebooks = cls()
        for owner, group, state in states:
            if "codebook" in state:
                codebooks.of(owner, group["first_moment_bits"]).adopt(owner, state)
        return codebooks

    def of(self, owner: Tensor, bits: int) -> SharedCodebook:
        """Return the codebook of 2^bits levels for a parameter, as the user knows it."""
        return self._by_key.setdefault(codebook_key(owner, bits), SharedCodebook(1 << bits))


def codebook_key(owner: Tensor, bits: int) -> tuple[int, Hashable]:
    """Return what parameters have in common that share a codebook."""
    return bits, mesh_of(owner)
