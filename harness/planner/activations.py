"""Activation memory of a model's forward and backward pass, in bytes, without allocating it.

Method. The model's own code runs forward and backward on tensors without memory (FakeTensorMode)
with two and with three layers, and the storages alive after every operation are summed. All layers
of a model are alike, so what is live at a given place of the pass is linear in their number; the
largest sum of each part of the pass (forward; head and loss; backward through the last layer,
through the first, and after it) is extended to the wanted number, and the largest part counts.
Counting as torch.distributed._tools.MemTracker (PyTorch); the layers' terms are those of
Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models",
arXiv 2205.05198, section 4, as far as the code of transformers computes what they assume.

Nothing is fitted. The terms that the sum contains, because the operations return them:
- per layer: the inputs that matrix products, norms, rotations, gates and activation functions keep
  for the backward pass; queries, keys, values, output and one logarithm per row of fused attention
  (no tokens x tokens matrix); float32 copies inside RMSNorm, and the low-precision copies that
  autocast makes of inputs and, until the layer's backward pass, of weights (`with_copies`);
- outside: embeddings, last norm, logits in the computing dtype and in float32 for the loss, their
  log-softmax and its gradient: several times tokens x vocabulary;
- gradients, which come while activations go: the peak is less than the sum of both;
- with checkpointing (Chen et al., arXiv 1604.06174), each layer keeps its input alone and one
  layer at a time is recomputed.

Not contained: what a kernel takes for itself and frees before it returns (packed or blocked copies
of matrices, workspaces), which depends on the processor (with AVX-512 oneDNN packs operands of
bfloat16 products, 42 to 128 KB each in a small model; with AVX2 it packs none); what an allocator
rounds up or cannot give back, and libraries' own memory. The operations are those of the CPU: fused
attention keeps the same tensors on CUDA, but autocast there computes some more operations (GPT-2's
norms and tanh) in float32. For mixtures of experts, rows for tokens x experts per token, however
the router spreads them.
"""

import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.config import ModelConfig, from_dict, to_dict
from harness.models import untrained_model
from harness.models.inputs import example

METHOD = (
    "live storages of the model's own forward and backward pass on tensors without memory, "
    "extended linearly from 2 and 3 layers to all (harness.planner.activations)"
)
_PARTS = ("forward", "head", "last", "first", "tail")
_FEW, _MORE = 2, 3
_MASKS = (
    "create_causal_mask",
    "create_sliding_window_causal_mask",
    "create_bidirectional_mask",
)
_ACTIVATION, _COPY, _GRADIENT, _PARAMETER = "activation", "copy", "gradient", "parameter"


class Pass(NamedTuple):
    """The kind of pass: tokens, precision, and whether layers are recomputed."""

    seq_len: int
    micro_batch: int
    precision: str
    checkpointing: bool
    vocab_size: int


@dataclass
class Peaks:
    """Largest sums of live bytes within a part of the pass.

    `with_gradients`: everything beside the parameters. `with_copies`: without finished gradients.
    `activations`: without the low-precision copies of weights that autocast makes either.
    """

    with_gradients: int = 0
    with_copies: int = 0
    activations: int = 0


def activation_peaks(model: ModelConfig, kind: Pass) -> Peaks:
    """Largest bytes beside the parameters during one forward and backward pass of `model`.

    Raises UserError as `harness.models.build_model`.
    """
    few, more = min(_FEW, model.layers), min(_MORE, model.layers)
    shape = _key(model)
    low, high = _trace(shape, few, kind), _trace(shape, more, kind)
    further = model.layers - more
    if not further:
        return _largest(list(high.values()))
    return _largest([_extend(low[part], high[part], further) for part in _PARTS])


def _key(model: ModelConfig) -> tuple[tuple[str, Any], ...]:
    """A hashable configuration; the number of layers and the name do not matter to a trace."""
    values = to_dict(replace(model, name="", layers=_MORE))
    return tuple(values.items())


def _extend(low: Peaks, high: Peaks, further: int) -> Peaks:
    pairs = zip(astuple(low), astuple(high), strict=True)
    return Peaks(*(more + further * (more - few) for few, more in pairs))


def _largest(parts: list[Peaks]) -> Peaks:
    return Peaks(*(max(values) for values in zip(*map(astuple, parts), strict=True)))


@lru_cache(maxsize=256)
def _trace(shape: tuple[tuple[str, Any], ...], layers: int, kind: Pass) -> dict[str, Peaks]:
    """Peaks of each part of the pass of a model with this number of layers."""
    from transformers import PreTrainedModel

    config = from_dict(ModelConfig, dict(shape))
    # Fake tensors on the CPU: a default device would send every factory through Python again.
    with FakeTensorMode():
        dtype = torch.bfloat16 if kind.precision == "bf16_pure" else torch.float32
        # Values do not matter, and truncating a normal distribution looks at them.
        with patch.object(PreTrainedModel, "initialize_weights", lambda _: None):
            model = untrained_model(config, kind.vocab_size, layers, dtype)
        if kind.checkpointing:
            model.activation_checkpointing_enable()
        live = LiveStorages(model)
        _mark_parts(model, layers, live)
        with live, _whole_sequences(model):
            inputs = example(config, kind.micro_batch, kind.seq_len)
            mixed = kind.precision == "bf16_mixed"
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
                loss = model(**inputs).loss
            loss.backward()
    return {part: live.peaks.get(part, Peaks()) for part in (*_PARTS, "middle")}


@contextmanager
def _whole_sequences(model: nn.Module) -> Iterator[None]:
    """No attention mask, as training on whole sequences takes none.

    transformers finds that out from the values of the positions, which fake tensors do not have;
    it would then make a mask of tokens x tokens in every layer, and repeat grouped keys and values.
    """
    with ExitStack() as stack:
        for module in {sys.modules[type(part).__module__] for part in model.modules()}:
            for name in _MASKS:
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, lambda *_, **__: None))
        yield


def _mark_parts(model: nn.Module, layers: int, live: "LiveStorages") -> None:
    """Tell `live` where each part of the pass begins, by hooks on the stack of layers."""
    lists = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == layers)
    stack = next(lists)

    def begin(part: str, tensor: Tensor) -> None:
        def enter(_: Tensor) -> None:
            live.part = part

        tensor.register_hook(enter)

    def before(module: nn.Module, inputs: Any) -> None:
        if live.part == "forward" and inputs[0].requires_grad:
            begin("tail", inputs[0])

    def after(index: int, output: Any) -> None:
        if live.part != "forward":  # a layer that is computed again
            return
        tensor = output[0] if isinstance(output, tuple) else output
        last = index == layers - 1
        begin("last" if last else "middle" if index else "first", tensor)
        live.part = "head" if last else "forward"

    stack[0].register_forward_pre_hook(before)
    for index, layer in enumerate(stack):
        layer.register_forward_hook(lambda m, i, output, k=index: after(k, output))


class LiveStorages(TorchDispatchMode):
    """Bytes alive by kind while it is active; `peaks` by part, `part` names the present one.

    As `torch.distributed._tools.MemTracker`: a dispatch mode sees what every operation returns, and
    a finalizer says when a storage is released. Temporaries inside an operation are not seen. Under
    FakeTensorMode storages have their size but no memory.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.part = "forward"
        self.peaks: dict[str, Peaks] = {}
        self._live = dict.fromkeys((_ACTIVATION, _COPY, _GRADIENT, _PARAMETER), 0)
        self._storages: dict[int, tuple[str, int]] = {}  # kind and bytes by identity
        for parameter in model.parameters():
            self._note(parameter, _PARAMETER)
            parameter.register_post_accumulate_grad_hook(self._finish_gradient)
        for buffer in model.buffers():
            self._note(buffer, _PARAMETER)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it returns."""
        result = _run(func, args, kwargs or {})
        kind = _ACTIVATION
        if func is torch.ops.aten._to_copy.default:
            source, _ = self._storages.get(id(args[0].untyped_storage()), (kind, 0))
            kind = _COPY if source == _PARAMETER else kind
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf, kind)
        return result

    def _note(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        if id(storage) not in self._storages:
            self._storages[id(storage)] = kind, storage.nbytes()
            weakref.finalize(storage, self._release, id(storage)).atexit = False
            self._add(kind, storage.nbytes())

    def _release(self, key: int) -> None:
        kind, nbytes = self._storages.pop(key)
        self._live[kind] -= nbytes

    def _finish_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._note(parameter.grad, _GRADIENT)
        key = id(parameter.grad.untyped_storage())
        kind, nbytes = self._storages[key]
        self._live[kind] -= nbytes
        self._storages[key] = _GRADIENT, nbytes
        self._add(_GRADIENT, nbytes)

    def _add(self, kind: str, nbytes: int) -> None:
        self._live[kind] += nbytes
        live, peaks = self._live, self.peaks.setdefault(self.part, Peaks())
        copies = live[_ACTIVATION] + live[_COPY]
        peaks.activations = max(peaks.activations, live[_ACTIVATION])
        peaks.with_copies = max(peaks.with_copies, copies)
        peaks.with_gradients = max(peaks.with_gradients, copies + live[_GRADIENT])


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    if func is not torch.ops.aten._grouped_mm.default or args[0].dtype == torch.bfloat16:
        return func(*args, **kwargs)
    # The kernel takes float32 too, but its shape function for fake tensors refuses it (torch 2.13).
    low = func(*(a.bfloat16() for a in args[:2]), *args[2:], **kwargs)
    return torch.empty_like(low, dtype=args[0].dtype)
