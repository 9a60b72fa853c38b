"""The parameters of a step, divided among the executions of the update, kept from step to step.

What a step does in Python for each parameter decides the speed of small models, so everything that
rests on shapes and addresses is prepared once; `Plan.refresh` notices when it no longer holds.
"""

import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import call, is_
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

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
        self._counts: list[float] | None = None
        self._numbers: HostNumbers | DeviceNumbers
        if self._steps[0].device.type == "cpu":
            self._numbers = HostNumbers(entries, rule)
            # Views of the same memory: torch takes 6 us to add 1 to each of them.
            self._host_steps = [step.numpy() for step in self._steps]
            self._counts = [step.item() for step in self._steps]
        else:
            self._numbers = DeviceNumbers(entries, rule)
        execution.set_codes([codes_of(entry) for entry in entries])

    def holds(self) -> bool:
        """Whether steps counted on the host are as this part left them."""
        return self._counts is None or self._counts == [step.item() for step in self._host_steps]

    def sums(self) -> Sums:
        """Sums of squares of the factored parameters, by ordinal."""
        pairs = zip(self.execution.entries, self.execution.sums(), strict=True)
        return {entry.ordinal: own for entry, own in pairs if own is not None}

    def step(self, sums: Mapping[int, SquareSums]) -> None:
        """Count and perform a step; `sums` by ordinal where they are known already."""
        entries = self.execution.entries
        known = [sums.get(entry.ordinal) for entry in entries]
        if isinstance(self._numbers, HostNumbers):
            assert self._counts is not None
            counts = [count + 1 for count in self._counts]
            numbers, keys = self._numbers.of(np.array(counts, dtype=np.int64))
            for step, count in zip(self._host_steps, counts, strict=True):
                step[()] = count
            self._counts = counts
            self.execution.update(numbers, keys, known)
        else:
            torch._foreach_add_(self._steps, 1)
            self.execution.update(*self._numbers.of_steps(), known)
        # The kernels write behind autograd's back, which would miss a change of saved tensors.
        increment_version([entry.param for entry in entries])


@dataclass
class _Known:
    """What must not change for an entry to be used again; keeps no tensor of the state alive."""

    entry: Entry
    state: Mapping[str, Any]
    values: tuple[Callable[[], Any], ...]
    memory: tuple[Any, ...]
    options: tuple[Any, ...]
    sharded: bool

    @classmethod
    def of(cls, entry: Entry, state: Mapping[str, Any]) -> "_Known":
        values = tuple(map(_reference, state.values()))
        memory, sharded = _memory(entry.param, entry.state), is_sharded(entry.owner)
        return cls(entry, state, values, memory, _options(entry.group), sharded)

    def fits(self, param: Tensor, group: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
        """Whether parameter, options and state are those of before, in the same memory."""
        if param is not self.entry.owner or group is not self.entry.group:
            return False
        if state is not self.state or len(state) != len(self.values):
            return False
        if not all(map(is_, map(call, self.values), state.values())):
            return False
        if _options(group) != self.options:
            return False
        return _memory(self.local(param), self.local_state()) == self.memory

    def local(self, param: Tensor) -> Tensor:
        """This rank's part of the parameter."""
        return local(param) if self.sharded else param

    def local_gradient(self, param: Tensor) -> Tensor:
        """This rank's part of the parameter's gradient; there is one."""
        grad = param.grad
        assert grad is not None
        # The usual case without a call: a step of a small model is as slow as its Python.
        return grad if type(grad) is Tensor and not self.sharded else local_gradient(param, grad)

    def local_state(self) -> Mapping[str, Any]:
        """This rank's part of the state."""
        if not self.sharded:
            return self.state
        return {n: local(v) if isinstance(v, Tensor) else v for n, v in self.state.items()}


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
        self._known = [_Known.of(entry, states[entry.owner]) for entry in entries]
        lists: dict[tuple[type[Execution], Hashable], list[Entry]] = {}
        self.rest: list[Entry] = []
        for entry in entries:
            kind = execution_of(entry, rule)
            if kind is None:
                self.rest.append(entry)
            else:
                devices = entry.param.device, entry.state["step"].device
                key = (devices, kind.part_key(entry), is_sharded(entry.owner))
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
        """Let go of gradients and state, which the user may free or move after the step."""
        for entry in self.entries:
            entry.grad, entry.state = _NOTHING, {}
            if is_sharded(entry.owner):
                entry.param = _NOTHING

    def refresh(
        self, groups: Iterable[Mapping[str, Any]], states: Mapping[Tensor, Mapping[str, Any]]
    ) -> bool:
        """Take the gradients of a new step; False where the plan no longer fits."""
        active = [(p, group) for group in groups for p in group["params"] if p.grad is not None]
        if len(active) != len(self._known):
            return False
        # All that can fail comes before what may be a collective.
        for (param, group), known in zip(active, self._known, strict=True):
            if not known.fits(param, group, states.get(param, {})) or param.grad.is_sparse:
                return False
        if not all(part.holds() for part in self.parts):
            return False
        for (param, _), known in zip(active, self._known, strict=True):
            known.entry.param, known.entry.grad = known.local(param), known.local_gradient(param)
            known.entry.state = known.local_state()
        if any(execution_of(entry, self._rule) is not None for entry in self.rest):
            return False  # its gradient lay otherwise when the plan was made
        return all(part.execution.takes(e) for part in self.parts for e in part.execution.entries)


def is_capturing() -> bool:
    """Return whether what is launched now is captured in a CUDA graph."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _options(group: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(group[name] for name in _OPTIONS)


def _reference(value: Any) -> Callable[[], Any]:
    return weakref.ref(value) if isinstance(value, Tensor) else lambda: value


def _memory(param: Tensor, state: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where a parameter and its state lie, and as what; `.data` may replace any of it."""
    tensors = [value.data_ptr() for value in state.values() if isinstance(value, Tensor)]
    return param.data_ptr(), param.dtype, param.shape, param.stride(), *tensors
