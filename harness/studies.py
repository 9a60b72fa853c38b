"""Expands a study (parts of fixed overrides and sweeps) into lists of Hydra overrides."""

import itertools
from collections.abc import Iterator
from typing import Any

import yaml

from harness.errors import UserError
from harness.groups import load_group
from harness.schema import StudyConfig

PART_KEYS = ("overrides", "sweep", "tuned", "variants")
VARIANT_KEYS = ("optimizer", "options", "rate_of", "sweep")


def expand(study: StudyConfig, name: str, extra: list[str]) -> list[list[str]]:
    """One list of overrides for each cell of the study, in the order of its file.

    A part has `overrides` (key: value), `sweep` (key: list of values; the product is taken),
    `variants` and `tuned` (name in configs/tuned: each optimizer's learning rate comes from there).
    `extra` are the command line's own overrides, which win.

    `variants` maps a name, under which reports list the cells, to an optimizer in some
    configuration. Each variant may have `optimizer` (a file in configs/optimizer; by default the
    variant's name), `options` (added to the file's), `sweep` (as the part's, for this variant
    alone) and `rate_of` (whose tuned rate it takes; by default its own).
    """
    cells = []
    for part, content in study.parts.items():
        _check_part(part, content, extra)
        fixed = {"study": name, "part": part, **(content.get("overrides") or {})}
        for swept in _product(content.get("sweep") or {}):
            for rate_of, chosen in _variants(content.get("variants")):
                cell = {**fixed, **swept, **chosen}
                if content.get("tuned"):
                    rate_of = rate_of or str(cell.get("optimizer"))
                    cell["optimizer.lr"] = _rate(part, content["tuned"], cell, rate_of)
                cells.append([*(f"{key}={_text(value)}" for key, value in cell.items()), *extra])
    return cells


def _product(sweep: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*sweep.values()):
        yield dict(zip(sweep, values, strict=True))


def _variants(variants: dict[str, Any] | None) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Whose tuned rate and which overrides, for each variant and each value that it sweeps."""
    if variants is None:
        yield None, {}
        return
    for name, content in variants.items():
        content = content or {}
        # `++`: options that the optimizer's file does not name are added.
        options = {f"++optimizer.options.{k}": v for k, v in (content.get("options") or {}).items()}
        fixed = {"optimizer": content.get("optimizer", name), "optimizer.variant": name, **options}
        for swept in _product(content.get("sweep") or {}):
            yield content.get("rate_of", name), {**fixed, **swept}


def _check_part(part: str, content: Any, extra: list[str]) -> None:
    """Raise UserError where a part is malformed, or the command line overrides what it sweeps."""
    where = f"study.parts.{part}"
    _check_keys(where, content, PART_KEYS)
    variants = content.get("variants")
    if variants is not None and not (isinstance(variants, dict) and variants):
        raise UserError(f"{where}.variants={variants} must map names to optimizers.")
    _check_sweep(where, part, content.get("sweep") or {}, extra)
    for name, variant in (variants or {}).items():
        _check_keys(f"{where}.variants.{name}", variant or {}, VARIANT_KEYS)
        sweep = {"optimizer": [], **((variant or {}).get("sweep") or {})}
        _check_sweep(f"{where}.variants.{name}", part, sweep, extra)


def _check_keys(where: str, content: Any, allowed: tuple[str, ...]) -> None:
    wrong = sorted(set(content) - set(allowed)) if isinstance(content, dict) else [content]
    if wrong:
        raise UserError(
            f"{where} has {wrong[0]}, which is not known; allowed: {', '.join(allowed)}."
        )


def _check_sweep(where: str, part: str, sweep: dict[str, Any], extra: list[str]) -> None:
    for key, values in sweep.items():
        if not isinstance(values, list):
            raise UserError(f"{where}.sweep.{key}={values} must be a list.")
        if any(text.split("=")[0].lstrip("+~") == key for text in extra):
            raise UserError(
                f"{key} is swept by part {part} of the study; leave it out, or run without study=."
            )


def _rate(part: str, file: str, cell: dict[str, Any], rate_of: str) -> float:
    """The rate that a tuning study chose for an optimizer or a variant, and this model."""
    tuned = load_group("tuned", file)
    if cell.get("model", tuned["model"]) != tuned["model"]:
        raise UserError(
            f"study.parts.{part}.tuned={file} holds rates for model {tuned['model']}, "
            f"not for {cell['model']}."
        )
    winners = tuned["winners"]
    if rate_of not in winners:
        raise UserError(
            f"configs/tuned/{file}.yaml has no learning rate for optimizer {rate_of}; "
            f"it has {', '.join(sorted(winners))}."
        )
    return float(winners[rate_of]["lr"])


def _text(value: Any) -> str:
    """A value as Hydra's override grammar reads it."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
