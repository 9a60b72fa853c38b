"""A model and its optimizer state over the ranks of a cell: DDP's copies or FSDP2's shards.

Both wrappers are torch's own. Accelerate's FSDP plug-in does not take CPUs (accelerate 1.15,
AcceleratorState), and its DDP would keep a float32 copy of the logits under bf16_mixed, so that a
rank would hold more than one process.
"""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils._pytree import tree_map_only

from harness.train.distributed.ranks import Ranks, local

if TYPE_CHECKING:
    from torch import nn

# Loaded before the memory baseline: libraries differ in what they load on first use.
IMPORTS = (
    *("torch.distributed.fsdp", "torch.distributed.tensor", "torch.nn.parallel.distributed"),
    *("torch.distributed.checkpoint.state_dict", "torch.distributed.device_mesh"),
)


def spread(model: "nn.Module", ranks: Ranks, precision: str) -> "nn.Module":
    """The module to call in the place of `model`, whose parameters the optimizer then gets.

    FSDP cuts `model` itself, one unit for each layer and the rest a unit, and moves the shards to
    the device; DDP wraps it. Every rank must have built the same weights. One process gets `model`.

    bf16_mixed is autocast's, on one process as under both strategies. Layers alone gather their
    matrices in bfloat16, to which autocast would cast them anyway: its own copies would live from
    the forward pass of a layer until its backward pass, a whole model on each rank.
    """
    if ranks.count == 1:
        return model
    if not ranks.sharded:
        devices = None if ranks.device.type == "cpu" else [ranks.device]
        return torch.nn.parallel.DistributedDataParallel(model, device_ids=devices)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    products: dict[str, Any] = {}
    if precision == "bf16_mixed":
        low = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        products["mp_policy"] = low
    for layer in layers(model):
        if products:
            for module in uncast(layer):
                fully_shard(module, mesh=mesh)
        fully_shard(layer, mesh=mesh, **products)
    fully_shard(model, mesh=mesh)
    return model


def layers(model: "nn.Module") -> list["nn.Module"]:
    """The modules that transformers says are never to be split, as accelerate takes them."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def uncast(layer: "nn.Module") -> list["nn.Module"]:
    """The modules of a layer that autocast leaves some weight of in float32: norms, experts."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    own = (m for m in layer.modules() if any(True for _ in m.parameters(recurse=False)))
    return [module for module in own if not isinstance(module, (nn.Linear, Conv1D))]


def reshard(module: "nn.Module", ranks: Ranks) -> None:
    """Let go of the root unit's whole weights, which FSDP2 keeps after a pass without a backward.

    Until then the model's parameters are plain tensors, and neither counted nor clipped as shards.
    """
    if ranks.sharded:
        module.reshard()  # type: ignore[operator]


def local_state(state: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """A state dict with this rank's parts in the place of DTensors."""
    if not ranks.sharded:
        return state
    return cast(dict[str, Any], tree_map_only(torch.Tensor, local, state))


def model_state(model: "nn.Module", ranks: Ranks) -> dict[str, Any]:
    """The weights as one process has them; complete on rank 0, and all ranks must ask."""
    if not ranks.sharded:
        return model.state_dict()
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    return get_model_state_dict(model, options=_whole())


def load_model_state(model: "nn.Module", state: dict[str, Any], ranks: Ranks) -> None:
    """Take weights that `model_state` gave, of however many ranks."""
    if not ranks.sharded:
        model.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import set_model_state_dict

    set_model_state_dict(model, state, options=_whole(offload=False))


def optimizer_state(
    model: "nn.Module", optimizer: torch.optim.Optimizer, ranks: Ranks
) -> dict[str, Any]:
    """The optimizer's state dict as one process has it; as `model_state`."""
    if not ranks.sharded:
        return optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    named: Any = get_optimizer_state_dict(model, optimizer, options=_whole())
    if ranks.index:
        return {}
    numbers = {name: number for number, name in enumerate(_names(model, optimizer))}
    groups = [
        {**group, "params": [numbers[name] for name in group["params"]]}
        for group in named["param_groups"]
    ]
    return {
        "state": {numbers[name]: values for name, values in named["state"].items()},
        "param_groups": groups,
    }


def load_optimizer_state(
    model: "nn.Module", optimizer: torch.optim.Optimizer, state: dict[str, Any], ranks: Ranks
) -> None:
    """Take a state that `optimizer_state` gave, of however many ranks."""
    if not ranks.sharded:
        optimizer.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    names = _names(model, optimizer)
    groups = [
        {**group, "params": [names[number] for number in group["params"]]}
        for group in state["param_groups"]
    ]
    # What is cut is copied; a number would stay in the file that the checkpoint is mapped from.
    scalars = {
        number: {k: v.clone() for k, v in values.items() if torch.is_tensor(v) and not v.dim()}
        for number, values in state["state"].items()
    }
    named: Any = {
        "state": {names[n]: values | scalars[n] for n, values in state["state"].items()},
        "param_groups": groups,
    }
    set_optimizer_state_dict(model, optimizer, named, options=_whole(offload=False))


def _whole(offload: bool = True) -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=offload)


def _names(model: "nn.Module", optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's parameters in the order in which its state dict numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
