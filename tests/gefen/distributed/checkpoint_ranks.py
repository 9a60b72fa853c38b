"""Worker of test_checkpoint.py: optimizer state through torch.distributed.checkpoint.

A checkpoint of one process is written and read by rank 0 alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from models import CONFIGS, Net, everything, optimizer_of, set_gradients, sharded
from ranks import refusal, run
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from gefen import Gefen

SAVED_AT, STEPS = 3, 6


def advance(model: nn.Module, optimizer: Gefen, first: int, last: int) -> dict[str, Any]:
    for step in range(first, last):
        set_gradients(model, step)
        optimizer.step()
    optimizer.zero_grad()
    return everything(model, optimizer)


def save(model: nn.Module, optimizer: Gefen, path: Path, *, alone: bool, flat: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model_state, state = get_state_dict(model, optimizer, options=options)
    dcp.save({"model": model_state, "optimizer": state}, checkpoint_id=path, no_dist=alone)


def load(model: nn.Module, optimizer: Gefen, path: Path, *, alone: bool, flat: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model_state, state = get_state_dict(model, optimizer, options=options)
    tree = {"model": model_state, "optimizer": state}
    dcp.load(tree, checkpoint_id=path, no_dist=alone)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=tree["model"],
        optim_state_dict=tree["optimizer"],
        options=options,
    )


def unbroken(model: nn.Module, config: str, path: Path, *, alone: bool) -> dict[str, Any]:
    """Train for STEPS steps, saving on the way."""
    optimizer = optimizer_of(model, config)
    saved = advance(model, optimizer, 0, SAVED_AT)
    save(model, optimizer, path, alone=alone, flat=config == "factored 4")
    return {"saved": saved, "end": advance(model, optimizer, SAVED_AT, STEPS)}


def resumed(model: nn.Module, config: str, path: Path, *, alone: bool) -> dict[str, Any]:
    """Load into a model with other numbers and go on."""
    optimizer = optimizer_of(model, config)
    load(model, optimizer, path, alone=alone, flat=config == "factored 4")
    return continued(model, optimizer)


def continued(model: nn.Module, optimizer: Gefen) -> dict[str, Any]:
    storages = {
        (s["codebook"].to_local() if isinstance(s["codebook"], DTensor) else s["codebook"])
        .untyped_storage()
        .data_ptr()
        for s in optimizer.state.values()
        if "codebook" in s
    }
    return {
        "restored": everything(model, optimizer),
        "codebooks": len(storages),
        "kinds": kinds(model, optimizer),
        "end": advance(model, optimizer, SAVED_AT, STEPS),
    }


def kinds(model: nn.Module, optimizer: Gefen) -> dict[tuple[str, str], str]:
    """Return (parameter, state name) -> placements, or "plain"."""
    return {
        (name, key): str(value.placements) if isinstance(value, DTensor) else "plain"
        for name, param in model.named_parameters()
        for key, value in optimizer.state[param].items()
    }


def through_full_state(config: str) -> dict[str, Any]:
    """Gather the whole state on rank 0 and broadcast it into a new model, as trainers do."""
    model = sharded()
    optimizer = optimizer_of(model, config)
    saved = advance(model, optimizer, 0, SAVED_AT)
    gather = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_optimizer_state_dict(model, optimizer, options=gather)
    other = sharded()
    other.load_state_dict(model.state_dict())
    loaded = optimizer_of(other, config)
    spread = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(other, loaded, state, options=spread)
    expected = kinds(model, optimizer)
    found = continued(other, loaded)
    end = advance(model, optimizer, SAVED_AT, STEPS)
    return {"saved": saved, "end": end, "resumed": found, "expected kinds": expected}


def refusals() -> dict[str, Any]:
    """States of another kind or placed otherwise than the parameters, and that they do nothing."""
    names = ("replicate", "shard")
    builds: dict[str, Callable[[], nn.Module]] = {
        "plain": Net,
        "sharded": sharded,
        "replicated": lambda: sharded(mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=names)),
    }
    found: dict[str, Any] = {}
    for source, target in (("plain", "sharded"), ("sharded", "plain"), ("replicated", "sharded")):
        model, other = builds[source](), builds[target]()
        optimizer, loaded = optimizer_of(model, "factored 4"), optimizer_of(other, "factored 4")
        advance(model, optimizer, 0, 2)
        before = advance(other, loaded, 5, 6)
        text = refusal(lambda o=optimizer, n=loaded: n.load_state_dict(o.state_dict()))
        found[f"{source} to {target}"] = (text, before, everything(other, loaded))
    return found


def main(rank: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for config in CONFIGS:
        one, two = folder / f"{config} 1", folder / f"{config} 2"
        if rank == 0:
            found[f"one {config}"] = unbroken(Net(), config, one, alone=True)
        dist.barrier()
        found[f"two {config}"] = unbroken(sharded(), config, two, alone=False)
        found[f"2 to 2 {config}"] = resumed(sharded(seed=1), config, two, alone=False)
        found[f"1 to 2 {config}"] = resumed(sharded(seed=1), config, one, alone=False)
        if rank == 0:
            found[f"2 to 1 {config}"] = resumed(Net(seed=1), config, two, alone=True)
    found["full"] = through_full_state("factored 4")
    found["refusals"] = refusals()
    return found


if __name__ == "__main__":
    run(main)
