"""Which cells repeat one another: those whose configuration agrees in all but seeds and folds.

Tables and figures average over cells of one `model` and one `variant`. Where cells of a study have
the same names but unlike configurations, `models` and `variants` add to the name what differs.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

import pandas as pd

TOKEN_LOSS = ("pretrain", "finetune")  # tasks whose loss is in nats a token
TRAINING = (*TOKEN_LOSS, "classify")
CLIP_AND_NOISE = {"grad_clip": 1.0, "gradient_noise": 0.0}  # what a record without the key ran with
# Seeds, where results went and how they were watched: what may differ between repeats, besides
# folds.
HARMLESS = (
    *("seed", "model_seed", "data_seed", "device", "part", "root", "cache"),
    *("tracker", "study", "task.log_every_steps", "task.checkpoint_every_steps"),
)
POSITIONS = "model.max_positions"
# What a search under a memory cap varies on purpose, within one part of a study.
SEARCHED = ("micro_batch", "grad_accumulation", "task.memory_cap_gib", POSITIONS)
# Keys that a column of its own, or an entry of `conditions_of`, stands for.
COLUMNS = (
    *("optimizer", "precision", "seq_len", "launch", "task.kind", "task.steps"),
    *("task.eval_split", "task.final_eval_tokens"),
    *(f"task.{key}" for key in CLIP_AND_NOISE),
)
# Of a model and its data `model` and the data's hash stand for all but these. Positions follow the
# sequence length, by which cells are split anyway: they make no model another one.
KEPT = (POSITIONS, "data.name")
REST = "rest"  # of the configuration; a key that a record lacks came later, and is no difference


def settings_of(config: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    """What decides a cell's numbers besides its optimizer's name, model, length and precision."""
    optimizer = {
        key: value for key, value in config["optimizer"].items() if key not in ("name", "variant")
    }
    is_search = config.get("task", {}).get("memory_cap_gib") is not None
    ignored = (*HARMLESS, *COLUMNS, *(SEARCHED if is_search else ()))
    rest = {
        key: value
        for key, value in flatten(config).items()
        if not below(key, ignored) and (key in KEPT or not key.startswith(("data.", "model.")))
    }
    return {**optimizer, **conditions_of(config, provenance), REST: rest}


def model_name(model: dict[str, Any]) -> str:
    """The model's name; with adapters or activations computed again it is another condition."""
    adapters = f"+lora{model['lora_rank']}" if model.get("lora_rank") else ""
    recompute = "+recompute" if model.get("activation_checkpointing") else ""
    return f"{model['name']}{adapters}{recompute}"


def ranks_of(config: dict[str, Any]) -> str:
    """On how many processes a cell ran, as "2 x fsdp"; "1" for one, of which records say nothing.

    What was continued from a cell on other processes is told apart.
    """
    launch = config.get("launch") or {}
    count = launch.get("nproc", 1)
    text = f"{count} x {launch.get('strategy')}" if count > 1 else "1"
    resumed = launch.get("resume_from")
    return text if resumed is None else f"{text} after {resumed}"


def conditions_of(config: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    """What must not be averaged over, besides what tables and panels are split by anyway."""
    task = config.get("task", {})
    training = {}
    if task.get("kind") in TRAINING:
        batch = config.get("micro_batch", 1) * config.get("grad_accumulation", 1)
        batch *= (config.get("launch") or {}).get("nproc", 1)
        final = task.get("final_eval_tokens") or task.get("eval_tokens")
        training = {"steps": task.get("steps"), "split": task.get("eval_split"), "batch": batch}
        training["evaluated"] = final
        training |= {key: float(task.get(key, usual)) for key, usual in CLIP_AND_NOISE.items()}
    hashes = {"code": provenance.get("code_hash"), "data": provenance.get("data_hash")}
    short = {key: str(value)[:8] for key, value in hashes.items()}
    several = {} if ranks_of(config) == "1" else {"ranks": ranks_of(config)}
    return {**training, **several, **short, "device": provenance.get("device")}


def models(runs: pd.DataFrame) -> pd.Series:
    """Model names, with the settings that differ where models of one name are unlike."""
    names = runs["model"].astype(object).copy()
    for name, group in runs.groupby("model"):
        settings = [
            {
                key: value
                for key, value in flatten({"model": config["model"]}).items()
                if key not in ("model.name", POSITIONS)
            }
            for config in group["config"]
        ]
        for index, tail in zip(group.index, tails(settings, optional=("",)), strict=True):
            names[index] = f"{name}{tail}"
    return names


def variants(runs: pd.DataFrame) -> pd.Series:
    """Optimizer name, with the settings or conditions that differ where it ran with several.

    Only cells of one task, model, sequence length and precision count as "several", so a rate that
    was tuned for each sequence length does not split an optimizer.
    """
    names = runs["optimizer"].astype(object).copy()
    keys = ["optimizer", "task", "model", "seq_len", "precision"]
    for _, group in runs.groupby(keys, dropna=False):
        if group["settings"].nunique() < 2:
            continue
        settings = [flatten(json.loads(text)) for text in group["settings"]]
        for index, tail in zip(group.index, tails(settings, optional=(REST,)), strict=True):
            names[index] = f"{names[index]}{tail}"
    return names


def tails(settings: Sequence[dict[str, Any]], optional: Sequence[str]) -> list[str]:
    """For each flat mapping what sets it apart from the others: " (lr 0.002, layers 4)", or "".

    A key below one of `optional` ("" is above all) that a mapping lacks is no difference.
    """
    changed = []
    for key in sorted({key for flat in settings for key in flat}):
        may_lack = "" in optional or below(key, optional)
        texts = {str(flat.get(key)) for flat in settings if key in flat or not may_lack}
        changed += [key] if len(texts) > 1 else []
    shown = {
        key: shortened([flat.get(key) for flat in settings]) for key in telling(changed, settings)
    }
    words = [
        [f"{named(key)} {texts[at]}" for key, texts in shown.items()] for at in range(len(settings))
    ]
    return [f" ({', '.join(each)})" if each else "" for each in words]


def telling(changed: Sequence[str], settings: Sequence[dict[str, Any]]) -> list[str]:
    """Of keys that differ those that a label names: none of REST that another one tells as well.

    The name of the data tells more than its hash.
    """

    def split(key: str) -> list[int]:
        texts = [str(flat.get(key)) for flat in settings]
        return [texts.index(text) for text in texts]

    name = f"{REST}.data.name"
    kept = [key for key in changed if not below(key, (REST,))]
    if name in changed and "data" in kept and split(name) == split("data"):
        kept[kept.index("data")] = name
    known = [split(key) for key in kept]
    return kept + [key for key in changed if below(key, (REST,)) and split(key) not in known]


def named(key: str) -> str:
    """How a label calls a key: by its last part, or "data" for data.name."""
    parts = key.split(".")
    return parts[-2] if parts[-1] == "name" and len(parts) > 1 else parts[-1]


def shortened(values: Sequence[Any]) -> list[str]:
    """Values as text; paths by their last parts where those tell them apart."""
    texts = [str(value) for value in values]
    ends = [PurePath(text).name if "/" in text else text for text in texts]
    return ends if len(set(ends)) == len(set(texts)) else texts


def below(key: str, names: Iterable[str]) -> bool:
    """Whether a dotted key is one of `names` or lies below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing(configs: list[dict[str, Any]], ignore: tuple[str, ...] = ()) -> dict[str, list[Any]]:
    """Dotted keys with more than one value over `configs`, and those values in order.

    A key is ignored when it equals an entry of `ignore` or lies below one.
    """
    flats = [flatten(config) for config in configs]
    found: dict[str, list[Any]] = {}
    for key in sorted({key for flat in flats for key in flat}):
        if below(key, ignore):
            continue
        values: list[Any] = []
        for flat in flats:
            if flat.get(key) not in values:
                values.append(flat.get(key))
        if len(values) > 1:
            found[key] = values
    return found
