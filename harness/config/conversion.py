"""Dataclasses from nested plain values and back, with the types checked."""

import dataclasses
import types
import typing
from typing import Any, TypeVar

from harness.errors import UserError

T = TypeVar("T")


def from_dict(cls: type[T], values: dict[str, Any], prefix: str = "") -> T:
    """Build dataclass `cls` from nested plain values, checking names and types.

    Raises UserError that names the key, the value and what is allowed.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(
            f"Unknown key '{prefix}{unknown[0]}'; allowed here: {', '.join(sorted(hints))}."
        )
    built = {key: _convert(hints[key], value, prefix + key) for key, value in values.items()}
    return cls(**built)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """`value` as type `hint`; ints pass where floats are asked for."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, dict):
            return from_dict(hint, value, f"{key}.")
    elif isinstance(hint, types.UnionType):
        if value is None:
            return None
        return _convert(typing.get_args(hint)[0], value, key)
    elif hint is Any:
        return value
    elif typing.get_origin(hint) is list:
        if isinstance(value, list | tuple):
            return [_convert(typing.get_args(hint)[0], item, key) for item in value]
    elif typing.get_origin(hint) is dict:
        if isinstance(value, dict):
            return dict(value)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    wanted = getattr(hint, "__name__", str(hint))
    raise UserError(f"{key}={value!r} is not of type {wanted}.")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values of a configuration dataclass."""
    return dataclasses.asdict(config)
