"""The update rule in plain PyTorch: the specification, and the oracle of other executions.

Everything works in place on a parameter and its state, chunk by chunk, so that scratch memory
does not grow with the model. Maths is float32, or float64 for float64 parameters; state that is
not an index is float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gefen.blocks import Chunk, Geometry, block_slabs, chunk_shape, slabs, tensor_chunks
from gefen.codebook import BINS, block_histogram
from gefen.codes import Codes, cell_index
from gefen.updates.scratch import Buffers, Scratch, as_blocks, store_blocks

_SMALLEST = 2.0**-149  # of float32: as a lower bound it changes nothing but zero


@dataclass(frozen=True)
class Step:
    """The numbers of one step of one parameter, `number` counted from 1."""

    number: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    maximize: bool

    @property
    def decay(self) -> float:
        """Factor of decoupled weight decay."""
        return 1 - self.lr * self.weight_decay

    @property
    def size(self) -> float:
        """Learning rate over the first moment's bias correction."""
        return self.lr / (1 - self.beta1**self.number)

    @property
    def correction(self) -> float:
        """Square root of the second moment's bias correction."""
        return math.sqrt(1 - self.beta2**self.number)


def working_dtype(param: Tensor) -> torch.dtype:
    """Return the dtype of the update's maths."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def update_exact(
    param: Tensor, grad: Tensor, state: dict[str, Any], step: Step, scratch: Scratch
) -> None:
    """AdamW with `exp_avg` and `exp_avg_sq` in float32, for parameters without blocks."""
    tensors = (param, grad, state["exp_avg"], state["exp_avg_sq"])
    if all(tensor.is_contiguous() for tensor in tensors):
        pieces = zip(*(t.view(-1).split(scratch.elements) for t in tensors), strict=True)
    else:
        pieces = zip(*((tensor,) for tensor in tensors), strict=True)
    dtype = working_dtype(param)
    for p, g, first, second in pieces:
        value = p.to(dtype)
        gradient = -g.to(dtype) if step.maximize else g.to(dtype)
        mean, square = first.to(dtype), second.to(dtype)
        if step.weight_decay:
            value.mul_(step.decay)
        mean.lerp_(gradient, 1 - step.beta1)
        square.mul_(step.beta2).addcmul_(gradient, gradient, value=1 - step.beta2)
        denominator = square.sqrt().div_(step.correction).add_(step.eps)
        value.addcdiv_(mean, denominator, value=-step.size)
        for target, result in ((p, value), (first, mean), (second, square)):
            if target is not result:
                target.copy_(result)


def update_blocks(
    param: Tensor,
    grad: Tensor,
    state: dict[str, Any],
    geometry: Geometry,
    step: Step,
    codes: Codes | None,
    scratch: Scratch,
) -> None:
    """One step of a parameter with blocks; `codes` is None where the first moment is not quantised.

    For each block: v <- beta2 v + (1 - beta2) mean(g^2); m <- beta1 m + (1 - beta1) g; with
    codes, scale <- max |m| and m becomes the nearest code times scale; then param <- param
    (1 - lr wd) - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps).
    """
    dtype = working_dtype(param)
    plan = tensor_chunks((param, grad), geometry, scratch.elements)
    mean = mean_square(grad, geometry, plan, dtype, scratch)
    second_moment = state["second_moment"]
    second_moment.copy_(second_moment.to(dtype).mul_(step.beta2).add_(mean, alpha=1 - step.beta2))
    quantized = codes is not None
    pieces = zip(
        plan,
        slabs(param, geometry, plan),
        slabs(grad, geometry, plan),
        slabs(state["index" if quantized else "exp_avg"], geometry, plan),
        block_slabs(state["scale"], geometry, plan) if quantized else [None] * len(plan),
        block_slabs(second_moment, geometry, plan),
        strict=True,
    )
    for chunk, target, gradient_piece, stored, scale, second in pieces:
        buffers = scratch.buffers(chunk_shape(geometry, chunk), dtype)
        gradient = as_blocks(gradient_piece, buffers.gradient, negate=step.maximize)
        # Here and not once for the parameter: torch spreads roots of over 2048 values on threads.
        denominator = second.to(dtype, copy=True).sqrt_().div_(step.correction).add_(step.eps)
        value = as_blocks(target, buffers.value)
        if step.weight_decay:
            value.mul_(step.decay)
        if codes is None or scale is None:
            moment = _advance_moment(stored, gradient, step.beta1, buffers)
            value.addcdiv_(moment, denominator.unsqueeze(-1), value=-step.size)
        else:
            moment = _advance_codes(stored, scale, gradient, step.beta1, codes, buffers)
            value.addcmul_(moment, (scale / denominator).unsqueeze(-1), value=-step.size)
        store_blocks(target, value)


def apply_without_codebook(param: Tensor, grad: Tensor, step: Step) -> None:
    """Weight decay alone, but a non-finite gradient element makes its parameter element NaN.

    For parameters that wait for the codebook: their gradient is zero, or not finite wherever a
    block of it is not zero.
    """
    if step.weight_decay:
        param.mul_(step.decay)
    param.add_(grad, alpha=0)


def gradient_histogram(
    grad: Tensor, geometry: Geometry, maximize: bool, scratch: Scratch
) -> Tensor:
    """Return the int64 histogram of a gradient's blocks over their maxima, on its device."""
    total = torch.zeros(BINS, dtype=torch.int64, device=grad.device)
    plan = tensor_chunks((grad,), geometry, scratch.elements)
    for chunk, piece in zip(plan, slabs(grad, geometry, plan), strict=True):
        shape = chunk_shape(geometry, chunk)
        buffer = scratch.buffers(shape, working_dtype(grad)).gradient
        gradient = as_blocks(piece, buffer, negate=maximize)
        total += block_histogram(gradient, piece.numel() // shape[0])
    return total


def mean_square(
    grad: Tensor,
    geometry: Geometry,
    plan: Sequence[Chunk],
    dtype: torch.dtype,
    scratch: Scratch,
) -> Tensor:
    """Return the mean of the squared gradient over each block, in `dtype` and the state's shape."""
    mean = torch.empty(geometry.state_shape, dtype=dtype, device=grad.device)
    outputs = block_slabs(mean, geometry, plan)
    for chunk, piece, out in zip(plan, slabs(grad, geometry, plan), outputs, strict=True):
        buffer = scratch.buffers(chunk_shape(geometry, chunk), dtype).gradient
        torch.linalg.vector_norm(as_blocks(piece, buffer), dim=-1, out=out)
    mean.square_()
    mean[..., :-1].div_(geometry.block_length)
    mean[..., -1].div_(geometry.last_block_length)
    return mean


def _advance_moment(stored: Tensor, gradient: Tensor, beta1: float, buffers: Buffers) -> Tensor:
    """Advance a chunk of an unquantised first moment; return it in blocks."""
    moment = as_blocks(stored, buffers.moment)
    moment.lerp_(gradient, 1 - beta1)
    store_blocks(stored, moment)
    return moment


def _advance_codes(
    index: Tensor, scale: Tensor, gradient: Tensor, beta1: float, codes: Codes, buffers: Buffers
) -> Tensor:
    """Advance a chunk's index and scale; return the levels of the new codes in blocks."""
    moment, cells = buffers.moment, buffers.cells
    rows, width = index.shape
    matrix = cells.view(rows, -1)
    matrix[:, :width].copy_(index)
    matrix[:, width:].fill_(codes.zero_code)
    torch.index_select(codes.levels_bits, 0, cells, out=buffers.moment_bits)
    moment.mul_(scale.to(moment.dtype).mul(beta1).unsqueeze(-1)).add_(gradient, alpha=1 - beta1)
    torch.maximum(moment.amax(-1), moment.amin(-1).neg_(), out=scale)
    moment.div_(scale.to(moment.dtype).clamp_min(_SMALLEST).unsqueeze(-1))
    nearest = nearest_codes(codes, buffers)
    index.copy_(nearest.view(rows, -1)[:, :width])
    cells.copy_(nearest)
    torch.index_select(codes.levels_bits, 0, cells, out=buffers.moment_bits)
    return moment


def nearest_codes(codes: Codes, buffers: Buffers) -> Tensor:
    """Return the nearest code (flat uint8) of each value of `buffers.moment`, all in [-1, 1]."""
    values, cells, position = buffers.moment.view(-1), buffers.cells, buffers.position
    cell_index(values, position, cells)
    torch.index_select(codes.threshold_bits, 0, cells, out=buffers.position_bits)
    torch.index_select(codes.below, 0, cells, out=buffers.nearest)
    torch.gt(values, position, out=buffers.above)
    return buffers.nearest.add_(buffers.above_bits)
