"""`Gefen`: options, state, step and state_dict. The maths is in `gefen.updates`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from gefen.blocks import BLOCK_SIZE, MIN_QUANTIZED_SIZE, Geometry, row_geometry
from gefen.codebook import BINS
from gefen.options import check_options, check_parameter
from gefen.shared_codebook import SharedCodebook
from gefen.state import create_state, prepare_state
from gefen.updates.reference import (
    Step,
    apply_without_codebook,
    gradient_histogram,
    update_blocks,
    update_exact,
    working_dtype,
)
from gefen.updates.scratch import Scratch


class Gefen(Optimizer):
    """AdamW with a quantised first moment and one second moment per block: about 1 byte of state.

    A parameter is seen as rows (its last dimension; for convolutions all elements of one output
    channel) and a row of C elements as k = ceil(C / block_size) blocks of ceil(C / k). In step
    t = 1, 2, ..., for the elements i of each block b::

        v_b      <- beta2 v_b + (1 - beta2) mean(g_i^2)
        theta_i  <- theta_i (1 - lr weight_decay)
        m_i      <- beta1 c[index_i] scale_b + (1 - beta1) g_i
        scale_b  <- max |m_i|
        index_i  <- the code nearest to m_i / scale_b
        theta_i  <- theta_i - lr c[index_i] scale_b / (1 - beta1^t)
                              / (sqrt(v_b) / sqrt(1 - beta2^t) + eps)

    The codebook c holds up to 256 levels on [-1, 1], among them -1, 0 and 1. It is the exact
    optimal quantiser of the histogram of all gradients divided by their block's largest
    magnitude, learned once, in the first step with a finite, non-zero gradient of a quantised
    parameter, and shared by the whole model. Until then such parameters only decay, and their
    step counter rests. A non-finite gradient reaches the parameter, as with AdamW.

    Parameters with fewer than two dimensions, rows of fewer than 16 elements or fewer than
    `min_quantized_size` elements have AdamW's own state, in float32. The state of all others:
    `index` (uint8, the parameter's shape), `scale` and `second_moment` (float32, one value per
    block: (rows, k), or (experts, rows, k) for 3-D), `codebook` (float32, 256 values, one storage
    shared by all). Maths is float32, or float64 for float64 parameters; the state's dtypes do not
    depend on the parameter's, and loading a state_dict keeps them.

    Args:
        params: parameters, named parameters or groups, as for `torch.optim.AdamW`; float16,
            bfloat16, float32 or float64.
        lr: learning rate, a float or a one-element tensor.
        betas: decay of the first and of the second moment.
        eps: added to the denominator.
        weight_decay: decoupled weight decay.
        amsgrad: must be False.
        maximize: ascend instead of descend.
        foreach: accepted and ignored; there is one implementation.
        capturable, differentiable, fused: must be False (or None).
        first_moment_bits: 8, or 32 to keep the first moment in float32: exact, at 4 bytes per
            parameter instead of 1.
        block_size: most elements that share a scale and a second moment. Smaller blocks follow
            gradients of uneven size more closely and cost 8 bytes each (4 without quantisation).
        min_quantized_size: parameters with fewer elements keep AdamW's state, 8 bytes each.

    Raises:
        ValueError: an option out of range or not available, a parameter of another kind, or a
            loaded state that does not fit; always before anything changes.
        RuntimeError: a sparse gradient.

    Source: N. Benedek, T. Koren, O. Fried, "Gefen: Optimized Stochastic Optimizer",
    arXiv 2606.13894 (2026). The geometry and the level 0 differ from the published ones.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        first_moment_bits: int = 8,
        block_size: int = BLOCK_SIZE,
        min_quantized_size: int = MIN_QUANTIZED_SIZE,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "first_moment_bits": first_moment_bits,
            "block_size": block_size,
            "min_quantized_size": min_quantized_size,
        }
        check_options(defaults)
        self._codebook = SharedCodebook()
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore after copying, unpickling or loading; the codebook becomes one storage again."""
        super().__setstate__(state)
        self._share_codebook()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as `torch.optim.Optimizer` does; its options and parameters are checked."""
        check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            for param in self.param_groups[-1]["params"]:
                check_parameter(param)
        except ValueError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict of a Gefen with the same configuration over parameters of equal shape.

        Unlike the base class this keeps every dtype and only moves tensors to the parameters'
        devices. Raises ValueError, changing nothing, when the state does not fit.
        """
        prepared: dict[Any, Any] = {}

        def take_state(_: Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
            for group in incoming["param_groups"]:
                check_options({**self.defaults, **group})
            prepared.update(prepare_state(self.param_groups, incoming))
            return {**incoming, "state": {}}

        def install_state(_: Optimizer) -> None:
            self.state.update(prepared)
            self._share_codebook()

        # After the user's hooks on the way in and before them on the way out: their hooks see
        # what they would see with any optimizer, and the base class casts nothing.
        before = self.register_load_state_dict_pre_hook(take_state)
        after = self.register_load_state_dict_post_hook(install_state, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one step; return what `closure`, evaluated with gradients enabled, returns.

        Raises RuntimeError before any change when a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        entries = list(self._entries())
        scratch = {entry.param.device: Scratch(entry.param.device) for entry in entries}
        quantized = [entry for entry in entries if "index" in entry.state]
        if quantized and not self._codebook.learned:
            self._learn_codebook(quantized, scratch)
        for entry in entries:
            self._update(entry, scratch[entry.param.device])
        return loss

    def _entries(self) -> "Iterator[_Entry]":
        """Parameters with a gradient and their state, created where it is missing."""
        active = [
            (param, group)
            for group in self.param_groups
            for param in group["params"]
            if param.grad is not None
        ]
        if any(param.grad.is_sparse for param, _ in active):
            raise RuntimeError("Gefen does not support sparse gradients.")
        for param, group in active:
            state = self.state[param]
            if not state:
                state.update(create_state(param, group, self._codebook))
            geometry = row_geometry(param.shape, group["block_size"], group["min_quantized_size"])
            yield _Entry(param, param.grad, state, group, geometry)

    def _learn_codebook(
        self, quantized: "list[_Entry]", scratch: dict[torch.device, Scratch]
    ) -> None:
        histogram = torch.zeros(BINS, dtype=torch.int64)
        for entry in quantized:
            assert entry.geometry is not None
            histogram += gradient_histogram(
                entry.grad, entry.geometry, entry.group["maximize"], scratch[entry.param.device]
            ).cpu()
        self._codebook.learn(histogram)

    def _update(self, entry: "_Entry", scratch: Scratch) -> None:
        param, grad, state, group = entry.param, entry.grad, entry.state, entry.group
        waits = "index" in state and not self._codebook.learned
        if not waits:
            state["step"] += 1
        step = Step(
            number=int(state["step"]),
            lr=float(group["lr"]),
            beta1=float(group["betas"][0]),
            beta2=float(group["betas"][1]),
            eps=float(group["eps"]),
            weight_decay=float(group["weight_decay"]),
            maximize=group["maximize"],
        )
        if waits:
            apply_without_codebook(param, grad, step)
        elif entry.geometry is None:
            update_exact(param, grad, state, step, scratch)
        else:
            codes = None
            if "index" in state:
                codes = self._codebook.codes(param.device, working_dtype(param))
            update_blocks(param, grad, state, entry.geometry, step, codes, scratch)

    def _share_codebook(self) -> None:
        """Take the codebook from the state, where it becomes one storage again."""
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        states = (self.state[param] for param in params if param in self.state)
        self._codebook = SharedCodebook.from_states(s for s in states if "codebook" in s)


@dataclass(frozen=True)
class _Entry:
    """One parameter in a step; `geometry` is None where the state is AdamW's."""

    param: Tensor
    grad: Tensor
    state: dict[str, Any]
    group: dict[str, Any]
    geometry: Geometry | None
