"""Adam-mini: one second moment for each head, neuron or token (adam-mini, the authors' package).

Zhang et al., "Adam-mini: Use Fewer Learning Rates To Gain More", arXiv 2406.16793. The package
sorts parameters by their names: queries and keys by head, embeddings, head and feed-forward
matrices by row, biases element by element, everything else whole. GPT-2 of transformers holds
queries, keys and values in one transposed matrix, which falls under the rest.

The authors advise to treat each value matrix as a whole in short runs: option `whole_values`.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.config import OptimizerConfig
from harness.models import ParameterSpec, head_size_of
from harness.optimizers.closed_forms import AVERAGE_FLOPS, decay_flops, elements
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import settings
from harness.optimizers.options import flag

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_HEADS = ("k_proj", "q_proj", "wq", "wk", "query", "key")
_VALUES = ("v_proj", "wv", "value")
_ROWS = (
    *("embed", "embd", "wte", "lm_head", "output", "final_layer"),
    *("o_proj", "wo", "attn.proj", "feed_forward", "linear", "mlp"),
)
_MEAN_SQUARE_FLOPS = 2
_UPDATE_FLOPS = 1 + 1 + 1  # times the size of its block, times the rate, p - u
_BIAS_FLOPS = AVERAGE_FLOPS + 4 + 3 + 3  # as AdamW


def _build(kind: Any, model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    head_size = head_size_of(model)
    for name, p in named:
        _check(name, p.shape, head_size, config)
    optimizer = kind(
        iter(named),
        **settings(config),
        weight_decay=config.weight_decay,
        verbose=False,
    )
    # The package takes every visible device for a rank among which it sums gradients; here each
    # rank has them whole (DDP), or a DTensor sums over its own ranks (FSDP2).
    optimizer.world_size = 1
    if config.options["whole_values"]:
        optimizer.wv_names = set()
    for group in optimizer.param_groups:
        (p,) = group["params"]
        group["weight_decay"] = config.weight_decay if p.ndim >= 2 else 0.0
        if _kind(group["name"], config) == "head":
            # Elements of a head. The package derives it from `dim` and `n_heads`, which is wrong
            # where heads are not hidden size / heads wide.
            optimizer.head_numel = (head_size or 1) * p.shape[1]
    optimizer.register_load_state_dict_post_hook(_replicate_scalars)
    built: Optimizer = optimizer
    return built


def _replicate_scalars(optimizer: "Optimizer") -> None:
    """Of sharded tensors that share one moment, give it back its mesh, which loading drops."""
    for parameter, state in optimizer.state.items():
        moment, mesh = state.get("vmean"), getattr(parameter, "device_mesh", None)
        if mesh is not None and moment is not None and moment.ndim == 0:
            from torch.distributed.tensor import DTensor, Replicate

            if not isinstance(moment, DTensor):
                state["vmean"] = DTensor.from_local(moment, mesh, [Replicate()] * mesh.ndim)


def _kind(name: str, config: OptimizerConfig) -> str:
    """What shares a second moment in the parameter of that name, in the package's own order."""
    name = name.lower()
    rows = _ROWS if config.options["whole_values"] else (*_ROWS, *_VALUES)
    if "bias" in name:
        return "element"
    if any(part in name for part in _HEADS):
        return "head"
    return "row" if any(part in name for part in rows) else "tensor"


def _check(name: str, shape: Sequence[int], head_size: int | None, config: OptimizerConfig) -> None:
    """ValueError for a parameter that the package cannot take."""
    kind = _kind(name, config)
    if kind in ("head", "row") and len(shape) != 2:
        raise ValueError(f"{name} has {len(shape)} dimensions; Adam-mini takes matrices there")
    if kind == "head" and (head_size is None or shape[0] % head_size):
        raise ValueError(f"the size of a head in {name} is not known")


def _second_moments(spec: ParameterSpec, config: OptimizerConfig) -> int | None:
    """Elements of the second moment of one parameter; None where the size of a head is unknown."""
    kind = _kind(spec.name, config)
    if kind == "head":
        return None if spec.head_size is None else spec.shape[0] // spec.head_size
    return {"element": math.prod(spec.shape), "row": spec.shape[0], "tensor": 1}[kind]


def _state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int | None:
    """One moment for every element, the second for each block, in the parameter's dtype.

    Step counts are Python numbers. None where a query's or key's size of a head is not known.
    """
    total = elements(specs)
    for spec in specs:
        blocks = _second_moments(spec, config)
        if blocks is None:
            return None
        total += blocks
    return parameter_bytes * total


def _flops(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> int:
    """8 for each element (13 for biases), and the decay: algorithm 1 of the source."""
    total = decay_flops(config, specs)
    for spec in specs:
        shared = AVERAGE_FLOPS + _MEAN_SQUARE_FLOPS + _UPDATE_FLOPS
        each = _BIAS_FLOPS if _kind(spec.name, config) == "element" else shared
        total += each * math.prod(spec.shape)
    return total


ENTRY = OptimizerEntry(
    name="adam_mini",
    source="adam_mini.Adam_mini",
    summary="AdamW with one second moment for each head, neuron or token.",
    needs="adam-mini",
    options={"whole_values": flag(True)},
    build=_build,
    state_bytes=_state_bytes,
    flops=_flops,
    shards=True,
)
