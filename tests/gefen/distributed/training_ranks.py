"""Worker of test_ddp.py and test_fsdp2.py: Gefen on two ranks and on one.

What one process alone does, rank 0 computes: the two share a core in small test machines.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from models import (
    CONFIGS,
    Net,
    batch,
    everything,
    loss_of,
    optimizer_of,
    set_gradients,
    sharded,
    whole_parameters,
)
from ranks import counted_collectives, refusal, run
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from gefen import Gefen

STEPS = 10
SAME_STEPS = 5
POLICY = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def trained(model: nn.Module, optimizer: Gefen, ranks: int, rank: int) -> dict[str, Any]:
    """Train on this rank's part of two batches: losses over all of them, parameters at the end."""
    values = []
    for step in range(STEPS):
        tokens, targets = (t.chunk(ranks)[rank] for t in batch(step % 2))
        optimizer.zero_grad()
        loss = loss_of(model, tokens, targets)
        loss.backward()
        optimizer.step()
        values.append(loss.detach())
    losses = torch.stack(values)
    if ranks > 1:
        dist.all_reduce(losses)
    return {"losses": losses / ranks, **everything(getattr(model, "module", model), optimizer)}


def real_training(rank: int) -> dict[str, Any]:
    """Losses and parameters of one process, DDP and FSDP2 for the same global batches."""
    found: dict[str, Any] = {}
    for config in CONFIGS:
        if rank == 0:
            alone = Net()
            found[f"alone {config}"] = trained(alone, optimizer_of(alone, config), 1, 0)
        if config != "block 8":
            ddp = DistributedDataParallel(Net())
            found[f"ddp {config}"] = trained(ddp, optimizer_of(ddp.module, config), 2, rank)
        model = sharded()
        found[f"fsdp {config}"] = trained(model, optimizer_of(model, config), 2, rank)
    model = sharded(mp_policy=POLICY)
    found["policy"] = trained(model, optimizer_of(model, "factored 8"), 2, rank)
    return found


def same_steps(model: nn.Module, optimizer: Gefen) -> dict[str, Any]:
    """Steps with the same gradients on every rank, and the collectives of each."""
    collectives = []
    for step in range(SAME_STEPS):
        set_gradients(model, step)
        with counted_collectives() as counts:
            optimizer.step()
        collectives.append(counts)
    return {"collectives": collectives, **everything(model, optimizer)}


def same_gradients(rank: int) -> dict[str, Any]:
    """The same gradients on one rank and on two, and what the state looks like on two."""
    found: dict[str, Any] = {}
    cases = [(config, torch.float32) for config in CONFIGS] + [("factored 8", torch.bfloat16)]
    for config, dtype in cases:
        name = config if dtype == torch.float32 else f"{config} bfloat16"
        if rank == 0:
            alone = Net().to(dtype)
            found[f"alone {name}"] = same_steps(alone, optimizer_of(alone, config))
        model = sharded(dtype=dtype)
        optimizer = optimizer_of(model, config)
        found[f"fsdp {name}"] = same_steps(model, optimizer)
        found[f"layout {name}"] = layout(model, optimizer)
    if rank == 0:
        alone = Net()
        found["alone mixed bits"] = same_steps(alone, mixed_bits(alone))
    model = sharded()
    found["fsdp mixed bits"] = same_steps(model, mixed_bits(model))
    partly = Net()
    fully_shard(partly.up)
    fully_shard(partly.conv)
    names = ("replicate", "shard")
    meshes = {
        "partly sharded": partly,
        "replicated": sharded(mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=names)),
        "replicas of one": sharded(mesh=init_device_mesh("cpu", (1, 2), mesh_dim_names=names)),
    }
    for name, model in meshes.items():
        found[name] = same_steps(model, optimizer_of(model, "factored 4"))
    return found


def mixed_bits(model: nn.Module) -> Gefen:
    """Some parameters wait for a codebook in the first step, others are ready for their update."""
    params = list(model.parameters())
    groups = [
        {"params": params[start::3], "first_moment_bits": bits}
        for start, bits in enumerate((8, 32, 4))
    ]
    return Gefen(groups, lr=0.01, min_quantized_size=1)


def layout(model: nn.Module, optimizer: Gefen) -> dict[str, dict[str, Any]]:
    """Return parameter -> state name -> what this rank holds of it."""
    found: dict[str, dict[str, Any]] = {}
    for name, param in model.named_parameters():
        found[name] = {"rows": len(param.to_local()), "shape": tuple(param.shape)}
        for key, value in optimizer.state[param].items():
            is_dtensor = isinstance(value, DTensor)
            part = value.to_local() if is_dtensor else value
            found[name][key] = {
                "placements": value.placements if is_dtensor else None,
                "same mesh": is_dtensor and value.device_mesh == param.device_mesh,
                "rows": len(part) if part.ndim else None,
                "bytes": part.untyped_storage().nbytes(),
                "storage": part.untyped_storage().data_ptr(),
                "dtype": value.dtype,
            }
    return found


def skipped(rank: int) -> dict[str, Any]:
    """A NaN in one element of one rank's gradient, in the second of three steps."""
    model = sharded()
    optimizer = optimizer_of(model, "factored 4", skip_nonfinite=True)
    after = []
    for step in range(3):
        set_gradients(model, step)
        if step == 1 and rank == 1:
            model.embedding.weight.grad.to_local()[3, 5] = torch.nan
        with counted_collectives() as counts:
            optimizer.step()
        after.append(everything(model, optimizer))
    ddp = DistributedDataParallel(Net())
    ddp_optimizer = optimizer_of(ddp.module, "factored 4", skip_nonfinite=True)
    before = whole_parameters(ddp.module)
    tokens, targets = batch(0)
    (loss_of(ddp, tokens, targets) * (torch.nan if rank == 1 else 1)).backward()
    ddp_optimizer.step()
    return {
        "after": after,
        "steps": int(optimizer.skipped_steps),
        "last counts": counts,
        "ddp before": before,
        "ddp after": whole_parameters(ddp.module),
        "ddp steps": int(ddp_optimizer.skipped_steps),
    }


def idle() -> dict[str, Any]:
    """Zero gradients create the state and do nothing else."""
    model = sharded()
    optimizer = optimizer_of(model, "factored 4", weight_decay=0.0)
    before = whole_parameters(model)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    return {"before": before, "after": everything(model, optimizer)}


def refusals() -> dict[str, str]:
    columns = distribute_tensor(torch.ones(64, 128), init_device_mesh("cpu", (2,)), [Shard(1)])
    model = sharded()
    return {
        "paper": refusal(lambda: Gefen(model.parameters(), second_moment="paper")),
        "peak": refusal(lambda: Gefen(model.parameters(), second_moment="peak")),
        "columns": refusal(lambda: Gefen([nn.Parameter(columns)])),
    }


def main(rank: int, folder: Path) -> dict[str, Any]:
    return {
        "training": real_training(rank),
        "same": same_gradients(rank),
        "skipped": skipped(rank),
        "idle": idle(),
        "refusals": refusals(),
    }


if __name__ == "__main__":
    run(main)
