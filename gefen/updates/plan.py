"""The parameters of a step, divided among the executions of the update, kept from step to step.

What a step does in Python for each parameter decides the speed of small models, so everything that
rests on shapes and addresses is prepared once; `Plan.refresh` notices when it no longer holds.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_not
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gefen.codes import Codes
from gefen.sharding import is_sharded, local, local_gradient
from gefen.updates.entry import Entry
from gefen.updates.executions import Execution, execution_of, give_up
from gefen.updates.numbers import DeviceNumbers, HostNumbers
from gefen.updates.rule import Rule
from gefen.updates.square_sums import SquareSums

_NOTHING = torch.empty(0)
_OPTIONS = ("capturable", "fused", "skip_nonfinite")

Sums = dict[int, SquareSums]


class Part:
    """Parameters that one fused execution updates together."""

    def __init__(
        self, execution: Execution, codes_of: Callable[[Entry], Codes | None], rule: Rule
    ) -> None:
        entries = execution.entries
        self.execution = execution
        self.sharded = is_sharded(entries[0].owner)
        self._steps = [entry.state["step"] for entry in entries]
        self._numbers: HostNumbers | DeviceNumbers
        if self._steps[0].device.type == "cpu":
            self._numbers = HostNumbers(entries, rule)
            self._counts = np.array([int(step) for step in self._steps])
        else:
            self._numbers = DeviceNumbers(entries, rule)
        self._versions = [_version(step) for step in self._steps]
        execution.set_codes([codes_of(entry) for entry in entries])

    def holds(self) -> bool:
        """Whether the step counters are as this part left them and gradients as it needs them."""
        counted = all(map(_same_version, self._steps, self._versions))
        return counted and all(map(self.execution.takes, self.execution.entries))

    def sums(self) -> Sums:
        """Sums of squares of the factored parameters, by ordinal."""
        pairs = zip(self.execution.entries, self.execution.sums(), strict=True)
        return {entry.ordinal: own for entry, own in pairs if own is not None}

    def step(self, sums: Mapping[int, SquareSums]) -> None:
        """Count and perform a step; `sums` by ordinal where they are known already."""
        torch._foreach_add_(self._steps, 1)
        self._versions = [_version(step) for step in self._steps]
        known = [sums.get(entry.ordinal) for entry in self.execution.entries]
        if isinstance(self._numbers, HostNumbers):
            self._counts += 1
            numbers, keys = self._numbers.of(self._counts)
            self.execution.update(numbers, keys, known)
        else:
            self.execution.update(*self._numbers.of_steps(), known)


@dataclass
class _Known:
    """What must not change for an entry to be used again."""

    entry: Entry
    state: Mapping[str, Any]
    values: tuple[Any, ...]
    address: int
    options: tuple[Any, ...]


class Plan:
    """All parameters of a step: `entries`, of which `rest` are left to the reference.

    `sharded` are those whose sums of squares are added up over ranks before the update.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        states: Mapping[Tensor, Mapping[str, Any]],
        codes_of: Callable[[Entry], Codes | None],
        rule: Rule,
    ) -> None:
        """Divide the entries of parameters that are ready for an update; tables are built here."""
        self.entries = entries
        self._rule = rule
        self._known = [_known(entry, states[entry.owner]) for entry in entries]
        lists: dict[tuple[type[Execution], Hashable], list[Entry]] = {}
        self.rest: list[Entry] = []
        for entry in entries:
            kind = execution_of(entry, rule)
            if kind is None:
                self.rest.append(entry)
            else:
                key = (entry.param.device, kind.part_key(entry), is_sharded(entry.owner))
                lists.setdefault((kind, key), []).append(entry)
        self.sharded = [e for e in entries if e.layout.factored and is_sharded(e.owner)]
        self.parts: list[Part] = []
        for (kind, _), own in lists.items():
            try:
                self.parts.append(Part(kind(own), codes_of, rule))
            except Exception as error:  # whatever a compiler raises; nothing has changed yet
                give_up(kind, own[0].param.device, error)
                self.rest += own

    def release(self) -> None:
        """Let go of the gradients, which the user may free after the step."""
        for entry in self.entries:
            entry.grad = _NOTHING

    def refresh(
        self, groups: Iterable[Mapping[str, Any]], states: Mapping[Tensor, Mapping[str, Any]]
    ) -> bool:
        """Take the gradients of a new step; False where the plan no longer fits."""
        active = [(p, group) for group in groups for p in group["params"] if p.grad is not None]
        if len(active) != len(self._known):
            return False
        for (param, group), known in zip(active, self._known, strict=True):
            entry, grad = known.entry, param.grad
            if param is not entry.owner or group is not entry.group:
                return False
            state = states.get(param)
            if state is not known.state or any(map(is_not, state.values(), known.values)):
                return False
            if tuple(group[name] for name in _OPTIONS) != known.options or grad.is_sparse:
                return False
            if local(param).data_ptr() != known.address:
                return False
            entry.grad = local_gradient(param, grad)
        if any(execution_of(entry, self._rule) is not None for entry in self.rest):
            return False  # its gradient lay otherwise when the plan was made
        return all(part.holds() for part in self.parts)


def _known(entry: Entry, state: Mapping[str, Any]) -> _Known:
    options = tuple(entry.group[name] for name in _OPTIONS)
    return _Known(entry, state, tuple(state.values()), entry.param.data_ptr(), options)


def _version(step: Tensor) -> int:
    """How often a tensor was changed in place, as far as torch counts it."""
    return 0 if step.is_inference() else step._version


def _same_version(step: Tensor, version: int) -> bool:
    return _version(step) == version
