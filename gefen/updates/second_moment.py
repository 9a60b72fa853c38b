"""The second moment of one parameter in one step, in its three forms.

Each is advanced when it is made; then the chunks of the parameter ask it for their denominators
and for the factors that the stored first moment is divided by.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from gefen.blocks import Geometry
from gefen.chunks import Chunk, slabs, tensor_chunks
from gefen.updates.entry import Entry
from gefen.updates.rule import Number, Rule, Step, working_dtype
from gefen.updates.scratch import Buffers, Scratch, as_blocks
from gefen.updates.square_sums import SquareSums, column_values, inverse


class SecondMoment(ABC):
    """What the chunks of a parameter need of its second moment; shapes (rows, groups, length)."""

    def old_factor(self, chunk: Chunk) -> Tensor | None:
        """What the stored first moment was divided by, (1, groups, length), or None."""
        return None

    def inverse_factor(self, chunk: Chunk) -> Tensor | None:
        """One over what the new first moment is divided by; zero where that is zero."""
        return None

    @abstractmethod
    def denominators(self, chunk: Chunk, gradient: Tensor, buffers: Buffers) -> Tensor:
        """Return sqrt(v / (1 - beta2^t)) + eps, broadcastable to a chunk's gradient."""


def advance(
    entry: Entry, sums: SquareSums | None, step: Step, scratch: Scratch, rule: Rule
) -> SecondMoment:
    """Advance the second moment; `sums` are needed by the factored form alone."""
    if entry.layout.second_moment == "element":
        return ElementMoment(entry, step)
    if sums is None:
        return BlockMoment(entry, step, scratch)
    return FactoredMoment(entry, sums, step, rule)


class FactoredMoment(SecondMoment):
    """v_ij = r_i c_j / mean(c), from running means of g^2 over rows and columns.

    mean(c) equals mean(r), and is known where the rows are spread over several ranks.
    Source: N. Shazeer, M. Stern, "Adafactor", arXiv 1804.04235 (2018), section 3.
    """

    def __init__(self, entry: Entry, sums: SquareSums, step: Step, rule: Rule) -> None:
        self.geometry, self.step = entry.geometry, step
        self.dtype = working_dtype(entry.param)
        relative = rule.relative and entry.layout.quantized
        row_mean, column_mean = entry.state["row_mean"], entry.state["column_mean"]
        columns = column_mean.view(self.geometry.experts, self.geometry.columns)
        rows = row_mean.view(self.geometry.experts, self.geometry.rows)
        self._old = columns.sqrt() if relative else None
        _lerp(rows, (sums.rows / self.geometry.columns).view(rows.shape), step.second_weight)
        _lerp(columns, sums.columns / self.geometry.matrix_rows, step.second_weight)
        mean = columns.mean(1, keepdim=True, dtype=sums.columns.dtype).to(rows.dtype)
        # A matrix without any gradient so far has zero rows, a zero mean and no update.
        mean = torch.where(mean == 0, 1, mean)
        # Roots before the product, which could leave float32's range.
        self._rows = (rows / mean).sqrt_().div_(step.correction).view(-1)
        self._columns = columns.sqrt()
        self._inverse = inverse(self._columns) if relative else None

    def old_factor(self, chunk: Chunk) -> Tensor | None:
        """The root of the columns' second moment before this step."""
        return None if self._old is None else self._of_columns(self._old, chunk)

    def inverse_factor(self, chunk: Chunk) -> Tensor | None:
        """One over the root of the columns' second moment after this step."""
        return None if self._inverse is None else self._of_columns(self._inverse, chunk)

    def denominators(self, chunk: Chunk, gradient: Tensor, buffers: Buffers) -> Tensor:
        """(rows, groups, length), in scratch memory."""
        rows = self._rows[chunk.row_start : chunk.row_stop].to(self.dtype).view(-1, 1, 1)
        columns = self._of_columns(self._columns, chunk)
        return torch.mul(rows, columns, out=buffers.denominator).add_(self.step.eps)

    def _of_columns(self, values: Tensor, chunk: Chunk) -> Tensor:
        return column_values(values, self.geometry, chunk, self.dtype)


class BlockMoment(SecondMoment):
    """One value per block of a row: the running mean of g^2 over its elements.

    Source: arXiv 2606.13894 (2026); the blocks are whole groups of a row here.
    """

    def __init__(self, entry: Entry, step: Step, scratch: Scratch) -> None:
        self.geometry, self.step = entry.geometry, step
        self.dtype = working_dtype(entry.param)
        shape = (self.geometry.total_rows, self.geometry.blocks_per_row)
        self._values = entry.state["second_moment"].view(shape)
        means = self._mean_squares(self.geometry.in_order(entry.grad), scratch)
        _lerp(self._values, means, step.second_weight)

    def denominators(self, chunk: Chunk, gradient: Tensor, buffers: Buffers) -> Tensor:
        """(rows, groups, 1)."""
        rows = self._values[chunk.row_start : chunk.row_stop]
        if self.geometry.groups_per_block == 1:
            rows = rows[:, chunk.group_start : chunk.group_stop]
        else:
            rows = rows[:, _block_of_group(self.geometry, chunk, rows.device)]
        roots = rows.to(self.dtype, copy=True).sqrt_()
        return roots.div_(self.step.correction).add_(self.step.eps).unsqueeze(-1)

    def _mean_squares(self, grad: Tensor, scratch: Scratch) -> Tensor:
        geometry = self.geometry
        shape = (geometry.total_rows, geometry.blocks_per_row)
        means = torch.zeros(shape, dtype=self.dtype, device=grad.device)
        plan = tensor_chunks((grad,), geometry, scratch.elements)
        for chunk, piece in zip(plan, slabs(grad, geometry, plan), strict=True):
            buffers = scratch.buffers((chunk.rows, chunk.groups, geometry.group_length), self.dtype)
            sums = torch.linalg.vector_norm(as_blocks(piece, buffers.gradient), dim=-1).square_()
            blocks = _block_of_group(geometry, chunk, grad.device)
            means[chunk.row_start : chunk.row_stop].index_add_(1, blocks, sums)
        # Two divisions and no tensor of lengths: nothing is copied from the host, for CUDA graphs.
        *_, last = geometry.block_lengths
        means[:, :-1].div_(geometry.block_lengths[0])
        means[:, -1].div_(last)
        return means


class ElementMoment(SecondMoment):
    """One value per element: what the published rules fall back to without a block structure."""

    def __init__(self, entry: Entry, step: Step) -> None:
        self.geometry, self.step = entry.geometry, step
        self.dtype = working_dtype(entry.param)
        self._values = entry.state["second_moment"].view(self.geometry.total_rows, -1)

    def denominators(self, chunk: Chunk, gradient: Tensor, buffers: Buffers) -> Tensor:
        """(rows, groups, length), in scratch memory; advances these elements."""
        rows = slice(chunk.row_start, chunk.row_stop)
        stored = self._values[rows, chunk.columns(self.geometry)]
        square = stored.to(self.dtype).view(gradient.shape)
        advance_square(square, gradient, self.step)
        stored.copy_(square.view(stored.shape))
        roots = torch.sqrt(square, out=buffers.denominator)
        return roots.div_(self.step.correction).add_(self.step.eps)


def advance_square(square: Tensor, gradient: Tensor, step: Step) -> None:
    """square <- beta2 square + (1 - beta2) gradient^2, in place."""
    if isinstance(step.second_weight, Tensor):
        square.lerp_(gradient.square(), step.second_weight)
    else:
        square.mul_(1 - step.second_weight)
        square.addcmul_(gradient, gradient, value=step.second_weight)


def _lerp(stored: Tensor, values: Tensor, weight: Number) -> None:
    """stored <- stored + weight (values - stored), in the dtype of the values."""
    if isinstance(weight, Tensor):
        weight = weight.to(values.dtype)
    # Squares of finite gradients can exceed float32; infinity would make 0 * inf of it later.
    values = values.clamp(max=torch.finfo(torch.float32).max)
    stored.copy_(stored.to(values.dtype, copy=True).lerp_(values, weight))


def _block_of_group(geometry: Geometry, chunk: Chunk, device: torch.device) -> Tensor:
    groups = torch.arange(chunk.group_start, chunk.group_stop, device=device)
    return groups.div_(geometry.groups_per_block, rounding_mode="floor")
