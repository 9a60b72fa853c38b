"""The state of a parameter: its layout, its creation, and the checks of a saved one."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gefen.blocks import row_geometry
from gefen.codebook import LEVELS
from gefen.codes import is_learned
from gefen.shared_codebook import SharedCodebook

CONFIGURATION = ("first_moment_bits", "block_size", "min_quantized_size")

_Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]


def state_layout(shape: torch.Size, group: Mapping[str, Any]) -> _Layout:
    """Return name -> (shape, dtype) of the state of a parameter of that shape in a group."""
    layout: _Layout = {"step": ((), torch.float32)}
    geometry = row_geometry(shape, group["block_size"], group["min_quantized_size"])
    if geometry is None:
        layout["exp_avg"] = layout["exp_avg_sq"] = (tuple(shape), torch.float32)
        return layout
    if group["first_moment_bits"] == 32:
        layout["exp_avg"] = (tuple(shape), torch.float32)
    else:
        layout["index"] = (tuple(shape), torch.uint8)
        layout["scale"] = (geometry.state_shape, torch.float32)
        layout["codebook"] = ((LEVELS,), torch.float32)
    layout["second_moment"] = (geometry.state_shape, torch.float32)
    return layout


def create_state(
    param: Tensor, group: Mapping[str, Any], codebook: SharedCodebook
) -> dict[str, Tensor]:
    """Return the state of a parameter before its first step: zeros, and the shared codebook."""
    state = {}
    for name, (shape, dtype) in state_layout(param.shape, group).items():
        if name == "codebook":
            state[name] = codebook.storage(param.device)
        else:
            device = "cpu" if name == "step" else param.device
            state[name] = torch.zeros(shape, dtype=dtype, device=device)
    return state


def prepare_state(
    groups: Sequence[Mapping[str, Any]], state_dict: Mapping[str, Any]
) -> dict[Any, Any]:
    """Return the state of a `state_dict` keyed by the groups' parameters, nothing else changed.

    Tensors are copied to the parameter's device (`step` to the CPU) and keep their dtype. Raises
    ValueError, in one sentence, when the state does not belong to these parameters.
    """
    saved_groups = state_dict["param_groups"]
    _check_groups(groups, saved_groups)
    saved_ids = chain.from_iterable(group["params"] for group in saved_groups)
    own = ((param, group) for group in groups for param in group["params"])
    owners = dict(zip(saved_ids, own, strict=True))
    prepared: dict[Any, Any] = {}
    codebook: Tensor | None = None
    for key, entry in state_dict["state"].items():
        if key not in owners:
            prepared[key] = entry
            continue
        param, group = owners[key]
        _check_entry(key, entry, state_layout(param.shape, group))
        if "index" in entry:
            _check_codebook(key, entry, codebook)
            codebook = entry["codebook"]
        prepared[param] = {name: _place(name, value, param) for name, value in entry.items()}
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
                    f"The state_dict has {key} = {saved.get(key)} in parameter group {number}, "
                    f"this optimizer has {group[key]}."
                )


def _check_entry(key: Any, entry: Mapping[str, Any], layout: _Layout) -> None:
    for name, (shape, dtype) in layout.items():
        value = entry.get(name)
        if name == "codebook" and value is None:
            raise ValueError(
                f"The state_dict has no codebook for parameter {key}, so its index means nothing."
            )
        if not isinstance(value, Tensor) or tuple(value.shape) != shape or value.dtype != dtype:
            found = (
                f"{value.dtype} of shape {tuple(value.shape)}"
                if isinstance(value, Tensor)
                else "no tensor"
            )
            raise ValueError(
                f"The state_dict has {found} as '{name}' of parameter {key}, "
                f"this optimizer needs {dtype} of shape {shape}."
            )


def _check_codebook(key: Any, entry: Mapping[str, Any], other: Tensor | None) -> None:
    codebook = entry["codebook"]
    if other is not None and other is not codebook and not torch.equal(other.cpu(), codebook.cpu()):
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


def _place(name: str, value: Any, param: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().to("cpu" if name == "step" else param.device, copy=True)
