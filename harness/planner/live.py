"""Live storages of a forward and backward pass that allocates nothing.

As `torch.distributed._tools.MemTracker`: a dispatch mode sees the outputs of every operation, and
a weak reference to a storage says when it is released. Under FakeTensorMode storages have their
size but no memory.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ACTIVATION, COPY, GRADIENT, PARAMETER = "activation", "copy", "gradient", "parameter"


@dataclass
class Peaks:
    """Largest sums of live bytes within a part of the pass.

    `with_gradients`: everything beside the parameters. `with_copies`: without finished gradients.
    `activations`: without the low-precision copies of weights that autocast makes either.
    """

    with_gradients: int = 0
    with_copies: int = 0
    activations: int = 0


@dataclass
class _Storage:
    reference: "weakref.ref[torch.UntypedStorage]"
    kind: str
    nbytes: int


@dataclass
class LiveStorages(TorchDispatchMode):
    """Counts by kind while it is active; `peaks` by part, `part` names the present one.

    Temporaries inside an operation are not seen: only what it returns.
    """

    model: nn.Module
    part: str = "forward"
    peaks: dict[str, Peaks] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self.live = dict.fromkeys((ACTIVATION, COPY, GRADIENT, PARAMETER), 0)
        self._storages: dict[int, _Storage] = {}
        for parameter in self.model.parameters():
            self._note(parameter, PARAMETER)
            parameter.register_post_accumulate_grad_hook(self._finish_gradient)
        for buffer in self.model.buffers():
            self._note(buffer, PARAMETER)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it returns."""
        result = _run(func, args, kwargs or {})
        kind = ACTIVATION
        if func is torch.ops.aten._to_copy.default and self._is_parameter(args[0]):
            kind = COPY
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf, kind)
        return result

    def _is_parameter(self, tensor: Tensor) -> bool:
        known = self._storages.get(id(tensor.untyped_storage()))
        return known is not None and known.kind == PARAMETER

    def _note(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._storages:
            return
        reference = weakref.ref(storage, self._released(key))
        self._storages[key] = _Storage(reference, kind, storage.nbytes())
        self.live[kind] += storage.nbytes()
        self._update()

    def _released(self, key: int) -> "Callable[[Any], None]":
        def release(_: Any) -> None:
            gone = self._storages.pop(key)
            self.live[gone.kind] -= gone.nbytes

        return release

    def _finish_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._note(parameter.grad, GRADIENT)
        known = self._storages[id(parameter.grad.untyped_storage())]
        self.live[known.kind] -= known.nbytes
        known.kind = GRADIENT
        self.live[GRADIENT] += known.nbytes
        self._update()

    def _update(self) -> None:
        live, peaks = self.live, self.peaks.setdefault(self.part, Peaks())
        copies = live[ACTIVATION] + live[COPY]
        peaks.activations = max(peaks.activations, live[ACTIVATION])
        peaks.with_copies = max(peaks.with_copies, copies)
        peaks.with_gradients = max(peaks.with_gradients, copies + live[GRADIENT])


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    if func is not torch.ops.aten._grouped_mm.default or args[0].dtype == torch.bfloat16:
        return func(*args, **kwargs)
    # The kernel takes float32 too, but its shape function for fake tensors refuses it (torch 2.13).
    low = func(*(a.bfloat16() for a in args[:2]), *args[2:], **kwargs)
    return torch.empty_like(low, dtype=args[0].dtype)
