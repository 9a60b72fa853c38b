"""Parameters that are updated together, and their state."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Group = dict[str, Any]
State = dict[str, Tensor]


def working_dtype(param: Tensor) -> torch.dtype:
    """The dtype of the maths and of the scalars: float64 for float64, float32 for all others."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


@dataclass
class Bucket:
    """The n parameters of one group, device and working dtype that have a gradient.

    Scalars are one value for each of them: state holds 0-d tensors, the maths sees vectors (n,).
    Nothing is read back from the device.
    """

    group: Group
    params: list[Tensor]
    states: list[State]
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters and their state are."""
        return self.params[0].device

    @property
    def rate(self) -> float | Tensor:
        """The learning rate, a number or a 0-d tensor of the working dtype on the device."""
        rate: float | Tensor = self.group["lr"]
        return rate.to(self.device, self.dtype).reshape(()) if isinstance(rate, Tensor) else rate

    def scalars(self, name: str) -> Tensor:
        """A copy (n,) of one scalar of all states."""
        return torch.stack([state[name] for state in self.states])

    def keep(self, **scalars: Tensor) -> None:
        """Write vectors (n,) into the states' scalars of those names, in place."""
        for name, values in scalars.items():
            torch._foreach_copy_([state[name] for state in self.states], list(values.unbind()))

    def gradient(self, index: int) -> Tensor:
        """A copy of a gradient in the working dtype, to be descended; NaN and infinities are 0."""
        grad = self.params[index].grad
        assert grad is not None
        clean = torch.nan_to_num(grad.to(self.dtype), nan=0.0, posinf=0.0, neginf=0.0)
        return clean.neg_() if self.group["maximize"] else clean

    def working(self, tensor: Tensor) -> Tensor:
        """A tensor itself where it has the working dtype, else a copy that has it."""
        return tensor.to(self.dtype)

    def means(self, statistics: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Two vectors (n,) from a pair of sums for each parameter, divided by its elements."""
        counts = torch.tensor(
            [max(1, p.numel()) for p in self.params], dtype=self.dtype, device=self.device
        )
        first, second = (torch.stack(sums) for sums in zip(*statistics, strict=True))
        return first / counts, second / counts


def write_back(original: Tensor, worked: Tensor) -> None:
    """Round the working copy of a tensor back into it, where there is one."""
    if worked is not original:
        original.copy_(worked)


def buckets(
    groups: Sequence[Group],
    states: Mapping[Tensor, State],
    moments: Sequence[str],
    scalars: Mapping[str, float],
) -> Iterator[Bucket]:
    """The parameters with a gradient, in buckets; state is created where it is missing.

    `moments` have the shape and dtype of the parameter and start at zero; `scalars` are 0-d, of
    the working dtype, and start at the values given.
    """
    for group in groups:
        found: dict[tuple[torch.device, torch.dtype], Bucket] = {}
        for param in group["params"]:
            if param.grad is None:
                continue
            dtype, state = working_dtype(param), states[param]
            if not state:
                for name in moments:
                    state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
                for name, value in scalars.items():
                    state[name] = torch.full((), value, dtype=dtype, device=param.device)
            bucket = found.setdefault((param.device, dtype), Bucket(group, [], [], dtype))
            bucket.params.append(param)
            bucket.states.append(state)
        yield from found.values()
