"""The layout of a parameter's state: names, shapes and dtypes, and its bytes in closed form."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from gefen.block_rules import group_length
from gefen.blocks import (
    BLOCK_SIZE,
    GROUP_SIZES,
    MIN_QUANTIZED_SIZE,
    Geometry,
    flat_geometry,
    row_geometry,
)

GRADIENT_RULES = ("paper", "peak")
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Field:
    """One tensor of the state; `follows` where it is sharded as the parameter is."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    follows: bool = True


@dataclass(frozen=True)
class Layout:
    """How a parameter's state is laid out.

    `second_moment` is "factored", "block" or "element". Where the state is AdamW's own, `geometry`
    is None and `second_moment` "none"; where a gradient has yet to decide, it is the rule's name.
    """

    shape: tuple[int, ...]
    geometry: Geometry | None
    first_moment_bits: int
    second_moment: str

    @property
    def quantized(self) -> bool:
        """Whether the first moment is stored as codes."""
        return self.geometry is not None and self.first_moment_bits < 32

    @property
    def factored(self) -> bool:
        """Whether the second moment is a product of a row and a column factor."""
        return self.geometry is not None and self.second_moment == "factored"

    def fields(self) -> dict[str, Field]:
        """Return name -> field of the state, `step` first."""
        step = {"step": Field((), follows=False)}
        geometry = self.geometry
        if geometry is None:
            return step | {"exp_avg": Field(self.shape), "exp_avg_sq": Field(self.shape)}
        if not self.quantized:
            first = {"exp_avg": Field(self.shape)}
        else:
            packed = (*geometry.lead, -(-geometry.columns // 2))
            first = {
                "index": Field(self.shape if self.first_moment_bits == 8 else packed, torch.uint8),
                "scale": Field(geometry.group_shape),
                "codebook": Field((1 << self.first_moment_bits,), follows=False),
            }
        if self.second_moment == "factored":
            stacked = len(geometry.lead) == 2
            second = {
                "row_mean": Field(geometry.lead),
                "column_mean": Field(geometry.column_shape, follows=stacked),
            }
        elif self.second_moment == "block":
            second = {"second_moment": Field(geometry.block_shape)}
        else:
            second = {"second_moment": Field((math.prod(self.shape),))}
        return step | first | second

    def shard(self, shape: tuple[int, ...]) -> "Layout":
        """Return the layout of the local part, of `shape`, of a parameter sharded by rows."""
        geometry = self.geometry
        if geometry is not None:
            geometry = geometry.with_leading_size(shape[0])
        return Layout(shape, geometry, self.first_moment_bits, self.second_moment)


def shape_layout(shape: Iterable[int], group: Mapping[str, Any]) -> Layout | None:
    """Return the layout that follows from the shape; None where the gradient decides."""
    return _shape_layout(
        tuple(shape),
        group["first_moment_bits"],
        group["second_moment"],
        group["group_size"],
        group["block_size"],
        group["min_quantized_size"],
    )


def flat_layout(shape: Iterable[int], bits: int, block: int) -> Layout:
    """Return the layout for blocks of `block` consecutive elements, 1 for one per element.

    Source: arXiv 2606.13894 and its package 1.2.3; see `gefen.block_rules`.
    """
    shape = tuple(shape)
    numel = math.prod(shape)
    geometry = flat_geometry(numel, group_length(numel, block))
    return Layout(shape, geometry, bits, "block" if block > 1 else "element")


@lru_cache(maxsize=4096)
def _shape_layout(
    shape: tuple[int, ...],
    bits: int,
    second_moment: str,
    group_size: int | None,
    block_size: int,
    min_quantized_size: int,
) -> Layout | None:
    group_size = group_size or GROUP_SIZES[bits]
    if second_moment == "block":
        group_size = min(group_size, block_size)
    geometry = row_geometry(
        shape, group_size, block_size, min_quantized_size, even_groups=bits == 4
    )
    if geometry is None:
        second_moment = "none"
    elif second_moment in GRADIENT_RULES:
        return None
    return Layout(shape, geometry, bits, second_moment)


def state_bytes(
    shapes: Iterable[Iterable[int]],
    first_moment_bits: int = 8,
    second_moment: str = "factored",
    group_size: int | None = None,
    block_size: int = BLOCK_SIZE,
    min_quantized_size: int = MIN_QUANTIZED_SIZE,
) -> int:
    """Return the bytes of Gefen's state for parameters of these shapes, in closed form.

    For n elements in (E, R, C): n bytes of codes (8-bit; E R ceil(C / 2) for 4-bit) and 4 a group,
    or 4 n (32-bit); for the second moment 4 (E R + E C) (factored) or 4 a block; 8 n where the
    state is AdamW's; 4 for each parameter's step; and one codebook of 2^bits float32 values shared
    by all (one for each device, should the parameters lie on several). Raises ValueError for
    "paper" and "peak", whose blocks depend on the gradients.
    """
    if second_moment in GRADIENT_RULES:
        raise ValueError(f"The state of second_moment={second_moment!r} depends on the gradients.")
    total, quantized = 0, False
    for shape in shapes:
        shape = tuple(shape)
        numel = math.prod(shape)
        layout = _shape_layout(
            shape, first_moment_bits, second_moment, group_size, block_size, min_quantized_size
        )
        assert layout is not None
        geometry = layout.geometry
        total += _FLOAT_BYTES
        if geometry is None:
            total += 2 * _FLOAT_BYTES * numel
            continue
        if layout.quantized:
            row_bytes = -(-geometry.columns * first_moment_bits // 8)
            total += geometry.total_rows * row_bytes + _FLOAT_BYTES * geometry.groups
            quantized = True
        else:
            total += _FLOAT_BYTES * numel
        if layout.factored:
            columns = geometry.experts * geometry.columns
            total += _FLOAT_BYTES * (geometry.total_rows + columns)
        else:
            total += _FLOAT_BYTES * geometry.blocks
    return total + _FLOAT_BYTES * (1 << first_moment_bits) if quantized else total
