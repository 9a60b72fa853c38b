"""The state of a parameter: its creation, and the checks of a saved one."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gefen.codes import is_learned
from gefen.layout import Field, Layout, flat_layout, shape_layout
from gefen.sharding import is_placed, is_sharded, local, wrap
from gefen.shared_codebook import SharedCodebook, codebook_key

CONFIGURATION = (
    "first_moment_bits",
    "second_moment",
    "group_size",
    "block_size",
    "min_quantized_size",
)


def create_state(
    param: Tensor, layout: Layout, codebook: SharedCodebook, *, capturable: bool = False
) -> dict[str, Tensor]:
    """Return the state of a parameter before its first step: zeros, and the shared codebook.

    `layout` is that of the whole parameter. Of a DTensor parameter the state is DTensors on its
    mesh, `step` excepted. `step` is on the CPU unless `capturable`.
    """
    part = local(param)
    here = layout.shard(tuple(part.shape)).fields() if is_sharded(param) else layout.fields()
    state = {}
    for name, field in layout.fields().items():
        if name == "step":
            device = part.device if capturable else "cpu"
            state[name] = torch.zeros((), dtype=field.dtype, device=device)
            continue
        if name == "codebook":
            value = codebook.storage(part.device)
        else:
            value = torch.zeros(here[name].shape, dtype=field.dtype, device=part.device)
        state[name] = wrap(param, value, field.shape, follow=field.follows)
    return state


def state_layout(
    param: Tensor, group: Mapping[str, Any], state: Mapping[str, Any]
) -> Layout | None:
    """Return the layout of a parameter; None where its first gradient will decide."""
    layout = shape_layout(param.shape, group)
    if layout is None and isinstance(state.get("second_moment"), Tensor):
        blocks = state["second_moment"].numel()
        if blocks == 0 or param.numel() % blocks:
            raise ValueError(
                f"The state_dict has a second moment of {blocks} blocks, which does not divide "
                f"the {param.numel()} elements of its parameter."
            )
        layout = flat_layout(param.shape, group["first_moment_bits"], param.numel() // blocks)
    return layout


def prepare_state(
    groups: Sequence[Mapping[str, Any]], state_dict: Mapping[str, Any]
) -> dict[Any, Any]:
    """Return the state of a `state_dict` keyed by the groups' parameters, nothing else changed.

    Tensors are copied to the parameter's device (`step` to the CPU unless capturable) and keep
    their dtype. Raises ValueError, in one sentence, when the state does not belong to these
    parameters.
    """
    saved_groups = state_dict["param_groups"]
    _check_groups(groups, saved_groups)
    saved_ids = chain.from_iterable(group["params"] for group in saved_groups)
    # The base class takes the saved group over, `capturable` with it.
    own = (
        (param, {**group, "capturable": saved.get("capturable", group["capturable"])})
        for group, saved in zip(groups, saved_groups, strict=True)
        for param in group["params"]
    )
    owners = dict(zip(saved_ids, own, strict=True))
    prepared: dict[Any, Any] = {}
    codebooks: dict[Hashable, Tensor] = {}
    for key, entry in state_dict["state"].items():
        if key not in owners:
            prepared[key] = entry
            continue
        param, group = owners[key]
        if not entry:
            continue
        layout = state_layout(param, group, entry)
        if layout is None:
            raise ValueError(f"The state_dict has no second moment for parameter {key}.")
        _check_entry(key, param, entry, layout)
        if "index" in entry:
            kind = codebook_key(param, group["first_moment_bits"])
            _check_codebook(key, entry, codebooks.get(kind))
            codebooks[kind] = entry["codebook"]
        prepared[param] = {
            name: _place(name, value, param, group["capturable"]) for name, value in entry.items()
        }
    return prepared


def _check_groups(
    groups: Sequence[Mapping[str, Any]], saved_groups: Sequence[Mapping[str, Any]]
) -> None:
    sizes = [len(group["params"]) for group in groups]
    saved_sizes = [len(group["params"]) for group in saved_groups]
    if sizes != saved_sizes:
        raise ValueError(
            f"The state_dict has parameter groups of {saved_sizes} parameters, "
            f"this optimizer has groups of {sizes}."
        )
    for number, (group, saved) in enumerate(zip(groups, saved_groups, strict=True)):
        for key in CONFIGURATION:
            if saved.get(key) != group[key]:
                raise ValueError(
                    f"The state_dict has {key} = {saved.get(key)!r} in parameter group {number}, "
                    f"this optimizer has {group[key]!r}."
                )


def _check_entry(key: Any, param: Tensor, entry: Mapping[str, Any], layout: Layout) -> None:
    for name, field in layout.fields().items():
        value: Any = entry.get(name)
        if name == "codebook" and value is None:
            raise ValueError(
                f"The state_dict has no codebook for parameter {key}, so its index means nothing."
            )
        if not _fits(value, field):
            found = (
                f"{value.dtype} of shape {tuple(value.shape)}"
                if isinstance(value, Tensor)
                else "no tensor"
            )
            raise ValueError(
                f"The state_dict has {found} as '{name}' of parameter {key}, "
                f"this optimizer needs {field.dtype} of shape {field.shape}."
            )
        _check_place(key, name, param, value, field.follows)


def _check_place(key: Any, name: str, param: Tensor, value: Tensor, follows: bool) -> None:
    if follows and is_sharded(value) != is_sharded(param):
        kinds = ("a plain tensor", "a DTensor")
        raise ValueError(
            f"The state_dict has {kinds[is_sharded(value)]} as '{name}' of parameter {key}, "
            f"which is {kinds[is_sharded(param)]}; "
            "torch.distributed.checkpoint converts between them."
        )
    if is_sharded(value) and not is_placed(param, value, follow=follows):
        raise ValueError(
            f"The state_dict has '{name}' of parameter {key} on another mesh or with other "
            "placements than its parameter; torch.distributed.checkpoint converts between them."
        )


def _fits(value: Any, field: Field) -> bool:
    if not isinstance(value, Tensor):
        return False
    return tuple(value.shape) == field.shape and value.dtype == field.dtype


def _check_codebook(key: Any, entry: Mapping[str, Any], other: Tensor | None) -> None:
    codebook = local(entry["codebook"]).cpu()
    if other is not None and not torch.equal(local(other).cpu(), codebook):
        raise ValueError(f"The state_dict has another codebook for parameter {key}.")
    if is_learned(codebook):
        levels = codebook[: int((codebook < 1).sum()) + 1]
        steps = levels.diff()
        if not bool((steps > 0).all() & (levels == 0).any() & (codebook[len(levels) :] == 1).all()):
            raise ValueError(
                f"The state_dict has a codebook for parameter {key} that does not rise "
                "from -1 through 0 to 1."
            )
    elif entry["step"] > 0:
        raise ValueError(
            f"The state_dict has no codebook for parameter {key}, so its index means nothing."
        )


def _place(name: str, value: Any, param: Tensor, capturable: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    if name == "step" and not capturable:
        return value.detach().to("cpu", copy=True)
    device = local(param).device
    if not is_sharded(value):
        own = value.detach().to(device, copy=True).contiguous()
        follows = name in ("codebook", "column_mean")
        return wrap(param, own, tuple(value.shape), follow=False) if follows else own
    return value.detach().to(device, copy=True)
