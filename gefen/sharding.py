"""DTensor parameters (FSDP2): their local parts, their state, and the sums over their shards.

A DTensor parameter is cut along dimension 0, so that every rank holds whole rows. The optimizer
works on the local tensors and speaks to other ranks only through `sum_over_shards`. For plain
tensors every function here returns at once, and `torch.distributed.tensor` is never imported.
"""

import sys
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, however it is placed."""
    return _dtensor(tensor) is not None


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a DTensor, sharing its memory; a plain tensor itself.

    The part of a DTensor is detached: in-place updates reach the parameter, not its graph.
    """
    sharded = _dtensor(tensor)
    if sharded is None:
        return tensor
    with torch.no_grad():
        # detach() also waits for a collective that is still under way
        return sharded.to_local().detach()


def local_gradient(param: Tensor, grad: Tensor) -> Tensor:
    """Return this rank's part of a gradient, placed as its parameter is.

    A gradient with other placements than the parameter's (Partial sums that are still to be
    added up, for example) is redistributed first: a collective over the parameter's mesh.

    Raises:
        ValueError: a plain gradient of a DTensor parameter, or the reverse.
    """
    sharded, sharded_grad = _dtensor(param), _dtensor(grad)
    if sharded is None and sharded_grad is None:
        return grad
    if sharded is None or sharded_grad is None:
        which = "gradient" if sharded is None else "parameter"
        raise ValueError(f"Of a parameter and its gradient only the {which} is a DTensor.")
    if sharded_grad.placements == sharded.placements:
        return local(grad)
    with torch.no_grad():
        return local(sharded_grad.redistribute(placements=sharded.placements))


def check_placements(param: Tensor) -> None:
    """Raise ValueError unless a parameter is plain or only replicated or sharded by dimension 0."""
    sharded = _dtensor(param)
    if sharded is None:
        return
    for placement in sharded.placements:
        if not (placement.is_replicate() or _is_row_shard(placement)):
            raise ValueError(
                "Gefen takes DTensor parameters placed as Replicate() or Shard(0), not as "
                f"{placement!r}."
            )


def row_offset(param: Tensor) -> int:
    """Return where this rank's first row lies in the whole parameter: an index of dimension 0.

    0 for plain and replicated parameters. Over several sharded mesh dimensions the rows are cut
    by the first, then each part by the next, in parts of ceil(rows / ranks), as torch does. An
    empty part begins where the last part that is not empty ends.
    """
    sharded = _dtensor(param)
    if sharded is None:
        return 0
    mesh = sharded.device_mesh
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return 0
    offset, rows = 0, sharded.shape[0] if sharded.ndim else 0
    for dim, placement in enumerate(sharded.placements):
        if _is_row_shard(placement):
            part = -(-rows // mesh.size(dim))
            start = min(coordinate[dim] * part, rows)
            offset, rows = offset + start, min(part, rows - start)
    return offset


def wrap(param: Tensor, local: Tensor, shape: tuple[int, ...], *, follow: bool) -> Tensor:
    """Return state that lies on its parameter's mesh, without communication.

    Args:
        param: the parameter.
        local: this rank's part of the state, contiguous; any dtype.
        shape: shape of the whole state.
        follow: place it as the parameter (dimension 0 of `shape` is the parameter's), or else
            replicate it, in which case all ranks must hold equal values.

    Returns:
        `local` itself for a plain parameter, else a DTensor that shares the storage of `local`.
    """
    sharded = _dtensor(param)
    if sharded is None:
        return local
    from torch.distributed.tensor import DTensor, Replicate

    mesh = sharded.device_mesh
    placements: Sequence[Placement] = sharded.placements
    if not follow:
        placements = [Replicate()] * mesh.ndim
    size, stride = torch.Size(shape), _contiguous_stride(shape)
    if local.device.type in (mesh.device_type, "meta"):
        return DTensor.from_local(local, mesh, placements, shape=size, stride=stride)
    # from_local would copy the state of an offloaded parameter to the mesh's devices
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    spec = DTensorSpec(mesh, tuple(placements), TensorMeta(size, stride, local.dtype))
    return DTensor(local, spec, requires_grad=False)


def mesh_of(param: Tensor) -> Hashable:
    """Return the mesh of a DTensor, None for a plain tensor."""
    sharded = _dtensor(param)
    return None if sharded is None else sharded.device_mesh


def placement_of(param: Tensor) -> Hashable:
    """Return what parameters have in common that are cut over the same mesh in the same way."""
    sharded = _dtensor(param)
    return None if sharded is None else (sharded.device_mesh, tuple(sharded.placements))


def is_placed(param: Tensor, state: Tensor, *, follow: bool) -> bool:
    """Return whether state lies where `wrap` would put it: same kind, mesh and placements."""
    sharded, wrapped = _dtensor(param), _dtensor(state)
    if sharded is None or wrapped is None:
        return sharded is wrapped
    if wrapped.device_mesh != sharded.device_mesh:
        return False
    if follow:
        return tuple(wrapped.placements) == tuple(sharded.placements)
    return all(placement.is_replicate() for placement in wrapped.placements)


@torch.no_grad()
def sum_over_shards(items: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Add up local tensors, in place, over the ranks among which their parameters are cut.

    Each item is (parameter, local tensor). The sum runs over the mesh dimensions in which the
    parameter is Shard(0). All tensors of one process group and dtype travel in one all-reduce,
    in the order of the items. Plain parameters, replicated mesh dimensions and mesh dimensions
    of one rank take no part; a group other than the meshes' own is never used.

    It is a collective: all ranks of a mesh must call it with the same parameters in the same
    order, and with local tensors of the same shapes and dtypes.
    """
    buckets: dict[tuple[str, torch.dtype, torch.device], list[Tensor]] = {}
    groups: dict[str, tuple[ProcessGroup, str]] = {}
    for param, tensor in items:
        for name, group, device_type in _shard_groups(param):
            groups[name] = group, device_type
            buckets.setdefault((name, tensor.dtype, tensor.device), []).append(tensor)
    for (name, _, _), tensors in buckets.items():
        _all_reduce(tensors, *groups[name])


def _all_reduce(tensors: Sequence[Tensor], group: "ProcessGroup", device_type: str) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    if flat.device.type != device_type:
        # offloaded state: the group may know its own devices only
        flat = flat.to(device_type)
    torch.distributed.all_reduce(flat, group=group)
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


def _shard_groups(param: Tensor) -> Iterator[tuple[str, "ProcessGroup", str]]:
    """Yield (name, group, device type) of each mesh dimension that cuts the parameter."""
    sharded = _dtensor(param)
    if sharded is None:
        return
    mesh = sharded.device_mesh
    for dim, placement in enumerate(sharded.placements):
        if _is_row_shard(placement) and mesh.size(dim) > 1:
            group = mesh.get_group(dim)
            yield group.group_name, group, mesh.device_type


def _dtensor(tensor: Tensor) -> "DTensor | None":
    # a DTensor exists only where its module has been imported, so plain users never pay for it
    module = sys.modules.get("torch.distributed.tensor")
    kind = getattr(module, "DTensor", None)
    return tensor if kind is not None and isinstance(tensor, kind) else None


def _is_row_shard(placement: "Placement") -> bool:
    from torch.distributed.tensor import Shard

    # the exact type: _StridedShard(0) interleaves rows
    return type(placement) is Shard and placement.dim == 0


def _contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * max(size, 1))
    return tuple(strides[: len(shape)])
