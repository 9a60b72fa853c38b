"""Which cells repeat each other, and how unlike ones are told apart; needs no torch.

An arm is a configuration without its seeds and folds: its cells are repetitions, which may be
averaged; those of different arms may not. Records carry `arm` in their provenance.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

REPEATED = ("seed", "model_seed", "data_seed", "data.fold")
APART = ("root", "cache", "tracker", "study", "part")  # where a run writes and what mirrors it
# What a label names anyway.
NAMED = (
    *("model.name", "data.name", "optimizer.name", "optimizer.variant", "optimizer.lr"),
    *("optimizer.lr_factor", "seq_len", "precision", "launch"),
)


def arm(settings: Mapping[str, Any], rest: Sequence[Any] = ()) -> str:
    """12 hex digits that cells share which differ in seeds and folds alone.

    `settings` are those of a cell's identity, or the configuration of a record; `rest` is what
    else must agree, as the hashes of data and weights.
    """
    kept = {key: value for key, value in flat(settings).items() if not _within(key, REPEATED)}
    text = json.dumps([kept, *rest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def arm_of(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """The arm of a record; of one from before records carried it, by all of its settings."""
    if "arm" in provenance:
        return str(provenance["arm"])
    kept = {key: value for key, value in config.items() if not _within(key, APART)}
    return arm(kept, [provenance.get("data_hash")])


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key, as optimizer.options.fused; empty groups are left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def differences(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """For each configuration the settings in which they differ, as "hidden_size=64 threads=2".

    Seeds, folds and what a label names anyway are left out. A key that others of the same last part
    differ in too stands whole.
    """
    each = [flat(config) for config in configs]
    keys = dict.fromkeys(key for values in each for key in values)
    unlike = [
        key
        for key in keys
        if not _within(key, (*REPEATED, *NAMED, *APART))
        and len({json.dumps(values.get(key)) for values in each}) > 1
    ]
    short = [key.rpartition(".")[2] for key in unlike]
    names = [s if short.count(s) == 1 else key for s, key in zip(short, unlike, strict=True)]
    return [
        " ".join(
            f"{name}={_text(values[key])}"
            for name, key in zip(names, unlike, strict=True)
            if key in values
        )
        for values in each
    ]


def _within(key: str, groups: Iterable[str]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    if isinstance(value, str):
        return value.rstrip("/").rpartition("/")[2]  # of a path the last part
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
