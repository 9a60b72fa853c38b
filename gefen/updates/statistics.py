"""What a step needs of several parameters at once: finiteness, sums over shards, histograms."""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from gefen.chunks import slabs, tensor_chunks
from gefen.codebook import BINS, block_histogram
from gefen.sharding import placement_of, sum_over_shards
from gefen.shared_codebook import codebook_key
from gefen.updates.cpu import CpuUpdate
from gefen.updates.entry import Entry
from gefen.updates.executions import execution_of
from gefen.updates.rule import Rule, working_dtype
from gefen.updates.scratch import Scratch, as_blocks
from gefen.updates.square_sums import SquareSums, column_values, inverse, square_sums

Scratches = Mapping[torch.device, Scratch]


def largest_magnitude(grad: Tensor) -> Tensor:
    """Return the largest magnitude of a gradient, 0-d; NaN if any element is NaN."""
    if grad.numel() == 0:
        return grad.new_zeros(())
    return torch.linalg.vector_norm(grad, torch.inf)


def any_nonfinite(entries: Sequence[Entry]) -> Tensor:
    """Return 1 (int64, 0-d) if any gradient on any rank of the parameters' meshes is not finite.

    A collective where there are DTensor parameters.
    """
    flags = [~largest_magnitude(entry.grad).isfinite() for entry in entries]
    found = torch.stack([flag.to(flags[0].device) for flag in flags]).any().to(torch.int64)
    owners = {placement_of(entry.owner): entry.owner for entry in entries}
    # Over several meshes the news travels one mesh further in each round.
    for _ in owners:
        for owner in owners.values():
            sum_over_shards([(owner, found)])
        found.clamp_max_(1)
    return found


def by_codebook(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return the entries in lists that share a codebook, in the order of their first entry."""
    shared: dict[Hashable, list[Entry]] = {}
    for entry in entries:
        key = codebook_key(entry.owner, entry.layout.first_moment_bits)
        shared.setdefault(key, []).append(entry)
    return list(shared.values())


def sums_by_ordinal(
    entries: Sequence[Entry], scratch: Scratches, rule: Rule
) -> dict[int, SquareSums]:
    """Return the sums of squares of factored parameters by ordinal, of local rows alone."""
    fused = [entry for entry in entries if execution_of(entry, rule) is CpuUpdate]
    sums = (
        dict(zip((e.ordinal for e in fused), CpuUpdate(fused).sums(), strict=True)) if fused else {}
    )
    return {
        entry.ordinal: sums.get(entry.ordinal)
        or square_sums(entry.grad, entry.geometry, scratch[entry.param.device])
        for entry in entries
    }


def shared_over_shards(entries: Sequence[Entry], sums: Mapping[int, SquareSums]) -> None:
    """Add up the column sums of all DTensor parameters over their shards, in one all-reduce."""
    # The columns of stacked experts belong to one rank, as their rows do.
    shared = [entry for entry in entries if len(entry.geometry.lead) == 1]
    sum_over_shards([(entry.owner, sums[entry.ordinal].columns) for entry in shared])


def total_histogram(
    entries: Sequence[Entry], sums: Mapping[int, SquareSums], scratch: Scratches, rule: Rule
) -> Tensor:
    """Return the histogram (int64, CPU) of all groups of these gradients, of all shards.

    The entries share a codebook, and so a mesh: one all-reduce for each way of placing parameters
    on it, none for plain ones.
    """
    totals: dict[Hashable, tuple[Tensor, Tensor]] = {}
    for entry in entries:
        histogram = gradient_histogram(
            entry, sums.get(entry.ordinal), scratch[entry.param.device], rule
        )
        key = (placement_of(entry.owner), histogram.device)
        _, total = totals.setdefault(key, (entry.owner, torch.zeros_like(histogram)))
        total += histogram
    for owner, total in totals.values():
        sum_over_shards([(owner, total)])
    return torch.stack([total.cpu() for _, total in totals.values()]).sum(0)


def gradient_histogram(
    entry: Entry, sums: SquareSums | None, scratch: Scratch, rule: Rule
) -> Tensor:
    """Return the int64 histogram of a gradient's groups over their maxima, on its device.

    With `sums`, those of a factored second moment, columns are first divided by their root mean
    square, as the first moment is before it is quantised.
    """
    if execution_of(entry, rule) is CpuUpdate:
        return CpuUpdate([entry]).histogram([sums])
    geometry, dtype = entry.geometry, working_dtype(entry.param)
    total = torch.zeros(BINS, dtype=torch.int64, device=entry.grad.device)
    grad = entry.geometry.in_order(entry.grad)
    plan = tensor_chunks((grad,), geometry, scratch.elements, join_experts=sums is None)
    inverses = inverse(sums.columns.sqrt()) if sums is not None and rule.relative else None
    for chunk, piece in zip(plan, slabs(grad, geometry, plan), strict=True):
        shape = (chunk.rows, chunk.groups, geometry.group_length)
        buffers = scratch.buffers(shape, dtype)
        gradient = as_blocks(piece, buffers.gradient, negate=entry.group["maximize"])
        if inverses is not None:
            factor = column_values(inverses, geometry, chunk, dtype)
            gradient = torch.mul(gradient, factor, out=buffers.moment)
        total += block_histogram(gradient, piece.numel() // max(1, chunk.rows))
    return total
