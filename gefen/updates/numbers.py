"""The numbers of one step for many parameters at once, as tables for the fused updates.

A row has decay, size, bound, correction, first weight, second weight, eps and sign: the fields of
`gefen.updates.rule.Step` (decay 1 for none, sign -1 to maximise), and the bound of an element's
step in units of size, infinite where there is none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gefen.rounding import mix, parameter_key, signed
from gefen.updates.entry import Entry
from gefen.updates.rule import Rule

_FIRST, _SECOND = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)


class HostNumbers:
    """Numbers computed on the host, for parameters whose steps are counted there."""

    def __init__(self, entries: Sequence[Entry], rule: Rule) -> None:
        """Take over what does not change from step to step."""
        self._groups = _groups(entries)
        self._rows = _rows(entries, self._groups)
        self._caps = _caps(entries, rule)
        keys = [parameter_key(entry.ordinal) for entry in entries]
        self._keys = np.array(keys, dtype=np.uint32)

    def of(self, counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.uint32]]:
        """Return numbers (n, 8) and keys (n,) of steps `counts` (n,), counted from 1."""
        values = np.array([_of_group(group) for group in self._groups], dtype=np.float64)
        lr, decay, beta1, beta2, eps, sign = values[self._rows].T
        first = 1 - beta1**counts
        columns = [1 - lr * decay, lr / first, self._caps * first, np.sqrt(1 - beta2**counts)]
        columns += [1 - beta1, 1 - beta2, eps, sign]
        return np.stack(columns, axis=1), _mixed(self._keys + counts.astype(np.uint32))


class DeviceNumbers:
    """Numbers computed where the steps are counted, for capturable=True; nothing is read back."""

    def __init__(self, entries: Sequence[Entry], rule: Rule) -> None:
        """Take over what does not change from step to step; it is copied to the device here."""
        self._steps = [entry.state["step"] for entry in entries]
        self._groups = _groups(entries)
        device = self._steps[0].device
        # 1 - 0.999 has four digits in float32.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._rows = torch.tensor(_rows(entries, self._groups), device=device)
        self._caps = torch.tensor(_caps(entries, rule), dtype=self._dtype, device=device)
        keys = [signed(parameter_key(entry.ordinal)) for entry in entries]
        self._keys = torch.tensor(keys, dtype=torch.int32, device=device)

    def of_steps(self) -> tuple[Tensor, Tensor]:
        """Return numbers (float32, (n, 8)) and keys (int32, (n,)) of the steps' counters."""
        counts = torch.stack([step.reshape(()) for step in self._steps])
        steps = counts.to(self._dtype)
        columns = zip(*(self._of_group(group) for group in self._groups), strict=True)
        lr, decay, beta1, beta2, eps, sign = (torch.stack(c)[self._rows] for c in columns)
        first = 1 - beta1**steps
        table = [1 - lr * decay, lr / first, self._caps * first, (1 - beta2**steps).sqrt()]
        table += [1 - beta1, 1 - beta2, eps, sign]
        bits = counts.to(torch.int32) + self._keys
        return torch.stack(table, dim=1).float(), mix(bits, torch.empty_like(bits))

    def _of_group(self, group: Mapping[str, Any]) -> list[Tensor]:
        sign = -1.0 if group["maximize"] else 1.0
        values = [group["lr"], group["weight_decay"], *group["betas"], group["eps"], sign]
        return [self._on_device(value) for value in values]

    def _on_device(self, value: float | Tensor) -> Tensor:
        if isinstance(value, Tensor):
            return value.to(self._caps.device, self._dtype).reshape(())
        return self._caps.new_full((), value)


def _groups(entries: Sequence[Entry]) -> list[Mapping[str, Any]]:
    return list({id(entry.group): entry.group for entry in entries}.values())


def _rows(entries: Sequence[Entry], groups: Sequence[Mapping[str, Any]]) -> list[int]:
    order = {id(group): row for row, group in enumerate(groups)}
    return [order[id(entry.group)] for entry in entries]


def _caps(entries: Sequence[Entry], rule: Rule) -> NDArray[np.float64]:
    bounded = np.array([entry.layout.factored for entry in entries])
    return np.where(bounded & (rule.cap is not None), rule.cap or 0.0, np.inf)


def _of_group(group: Mapping[str, Any]) -> list[float]:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    sign = -1.0 if group["maximize"] else 1.0
    return [float(group["lr"]), group["weight_decay"], beta1, beta2, group["eps"], sign]


def _mixed(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """`gefen.rounding.mix_integer` of each."""
    for shift, factor in ((16, _FIRST), (15, _SECOND)):
        x = (x ^ x >> np.uint32(shift)) * factor
    return x ^ x >> np.uint32(16)
