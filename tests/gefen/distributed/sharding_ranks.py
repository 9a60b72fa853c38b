"""Worker of test_sharding.py: what `gefen.sharding` does on two ranks."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from ranks import counted_collectives, run
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement

from gefen import sharding

ROWS = (33, 4, 1)


def parameter(rows: int, mesh: DeviceMesh, *placements: Placement) -> nn.Parameter:
    values = torch.arange(rows * 5, dtype=torch.float32).view(rows, 5)
    return nn.Parameter(distribute_tensor(values, mesh, placements))


def parts(mesh: DeviceMesh) -> dict[str, Any]:
    """Local parts share memory and begin where `row_offset` says."""
    found: dict[str, Any] = {}
    for rows in ROWS:
        param = parameter(rows, mesh, Shard(0))
        part, offset = sharding.local(param), sharding.row_offset(param)
        before = param.full_tensor().detach().clone()
        found[f"slice {rows}"] = torch.equal(part, before[offset : offset + len(part)])
        found[f"rows {rows}"] = len(part)
        found[f"plain {rows}"] = not sharding.is_sharded(part) and not part.requires_grad
        part.add_(1)
        found[f"reaches {rows}"] = torch.equal(param.full_tensor().detach(), before + 1)
    return found


def gradients(rank: int, mesh: DeviceMesh) -> dict[str, Any]:
    """Gradients in other placements than their parameter's."""
    ours = torch.arange(165, dtype=torch.float32).view(33, 5) * (rank + 1)
    partial = DTensor.from_local(ours, mesh, [Partial()])
    sharded, replicated = parameter(33, mesh, Shard(0)), parameter(33, mesh, Replicate())
    same = distribute_tensor(torch.ones(33, 5), mesh, [Shard(0)])
    kept = sharding.local_gradient(sharded, same)
    return {
        "partial to shard": sharding.local_gradient(sharded, partial),
        "partial to replicate": sharding.local_gradient(replicated, partial),
        "replicate to shard": sharding.local_gradient(sharded, parameter(33, mesh, Replicate())),
        "kept": kept.data_ptr() == same.to_local().data_ptr(),
    }


def wrapped(rank: int, mesh: DeviceMesh) -> dict[str, Any]:
    """State as DTensors over uneven and empty parts."""
    found: dict[str, Any] = {}
    for rows in ROWS:
        param = parameter(rows, mesh, Shard(0))
        offset, count = sharding.row_offset(param), len(sharding.local(param))
        part = torch.arange(offset * 3, (offset + count) * 3).view(count, 3).to(torch.uint8)
        with counted_collectives() as counts:
            state = sharding.wrap(param, part, (rows, 3), follow=True)
            copies = sharding.wrap(param, torch.arange(7.0), (7,), follow=False)
            number = sharding.wrap(param, torch.tensor(2.0), (), follow=False)
        found[f"collectives {rows}"] = counts
        found[f"shared {rows}"] = state.to_local().data_ptr() == part.data_ptr()
        found[f"placed {rows}"] = [str(t.placements) for t in (state, copies, number)]
        found[f"shapes {rows}"] = [tuple(t.shape) for t in (state, copies, number)]
        found[f"strides {rows}"] = state.stride()
        found[f"whole {rows}"] = state.full_tensor()
        found[f"copies {rows}"] = copies.full_tensor()
        found[f"number {rows}"] = number.full_tensor()
    return found


def sums(rank: int, mesh: DeviceMesh) -> dict[str, Any]:
    """One all-reduce a group and dtype; plain and replicated parameters take no part."""
    sharded, other = parameter(33, mesh, Shard(0)), parameter(1, mesh, Shard(0))
    replicated = parameter(33, mesh, Replicate())
    strided = torch.full((4, 6), float(rank))[:, ::2]
    items = [
        (sharded, torch.full((5,), rank + 1.0)),
        (torch.zeros(3), torch.full((3,), rank + 1.0)),
        (replicated, torch.full((2,), rank + 1.0)),
        (other, strided),
        (sharded, torch.tensor([2**60 + rank, rank])),
    ]
    with counted_collectives() as counts:
        sharding.sum_over_shards(items)
    with counted_collectives() as gathered:
        sharded.full_tensor()  # proof that the counter sees DTensor's own, functional collectives
    with counted_collectives() as none:
        sharding.sum_over_shards([(replicated, torch.ones(2)), (torch.zeros(2), torch.ones(2))])
        sharding.sum_over_shards([])
    found = {"sums": [t for _, t in items], "counts": counts, "none": none}
    return {**found, "gathered": gathered}


def mesh_dims(rank: int) -> dict[str, Any]:
    """Dimensions of one rank need no sum; those of two ranks use their own group."""
    found: dict[str, Any] = {}
    cases = {
        "ranks first": ((2, 1), [Shard(0), Shard(0)]),
        "ranks last": ((1, 2), [Shard(0), Shard(0)]),
        "ranks replicate": ((2, 1), [Replicate(), Shard(0)]),
    }
    for name, (shape, placements) in cases.items():
        mesh = init_device_mesh("cpu", shape)
        param = parameter(33, mesh, *placements)
        tensor = torch.tensor([rank + 1.0])
        with counted_collectives() as counts:
            sharding.sum_over_shards([(param, tensor)])
        found[name] = (tensor, counts, sharding.row_offset(param))
    return found


def own_group(rank: int) -> dict[str, Any]:
    """A mesh over a group of its own: the default group is left alone."""
    group = dist.new_group([0, 1])
    # the name sets it apart: torch's caches take equal meshes for one another, groups and all
    mesh = DeviceMesh.from_group(group, "cpu", mesh_dim_names=("own",))
    param, tensor = parameter(33, mesh, Shard(0)), torch.tensor([rank + 1.0])
    used: list[str] = []
    inner = dist.all_reduce

    def recorded(flat: Tensor, group: dist.ProcessGroup) -> None:
        used.append(group.group_name)
        inner(flat, group=group)

    with patch.object(dist, "all_reduce", recorded):
        sharding.sum_over_shards([(param, tensor)])
    return {
        "sum": tensor,
        "its own": used == [group.group_name],
        "default": dist.group.WORLD.group_name in used,
    }


def main(rank: int, folder: Path) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2,))
    return {
        "parts": parts(mesh),
        "gradients": gradients(rank, mesh),
        "wrapped": wrapped(rank, mesh),
        "sums": sums(rank, mesh),
        "mesh_dims": mesh_dims(rank),
        "own_group": own_group(rank),
    }


if __name__ == "__main__":
    run(main)
