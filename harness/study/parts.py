"""Reads a study: its parts of fixed overrides, sweeps and searches become cells to plan."""

import functools
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from harness.config import StudyConfig
from harness.config.groups import load_group
from harness.errors import UserError
from harness.study import tuning
from harness.study.search import Point, Search, build, searched_keys

PART_KEYS = ("overrides", "sweep", "linked", "tuned", "variants", "search", "alternate")
VARIANT_KEYS = ("optimizer", "options", "rate_of", "sweep")


def expand(study: StudyConfig, name: str, extra: list[str]) -> list[list[str]]:
    """One list of overrides for each cell that is known before any has run."""
    return [
        override_list(point, extra)
        for search in searches(study, name, extra)
        for point in search.state(lambda _: None).points
    ]


def override_list(point: Point, extra: list[str]) -> list[str]:
    """A cell in Hydra's override grammar; `extra`, the command line's own overrides, win."""
    return [*(f"{key}={_text(value)}" for key, value in point.items()), *extra]


def searches(study: StudyConfig, name: str, extra: list[str]) -> list[Search]:
    """What decides the cells of each part of the study, in the order of its file.

    A part has `overrides` (key: value), `sweep` (key: list of values; the product is taken),
    `linked` (a list of overrides that change together, each taken with the whole sweep),
    `variants`, `tuned` (where each optimizer's learning rate comes from: a name in configs/tuned,
    or the folder of a finished tuning study, as runs/tune) and `search` (see
    `harness.study.search`). With `alternate: true` every second point of the sweep runs the
    variants last to first, as a comparison of times needs it. `extra` are the command line's
    overrides.

    `variants` maps a name, under which reports list the cells, to an optimizer in some
    configuration. Each variant may have `optimizer` (a file in configs/optimizer; by default the
    variant's name), `options` (added to the file's), `sweep` (as the part's, for this variant
    alone) and `rate_of` (whose tuned rate it takes; by default its own).
    """
    found: list[Search] = []
    for part, content in study.parts.items():
        _check_part(part, content, extra)
        points = _points(part, content, {"study": name, "part": part})
        found.append(build(f"study.parts.{part}", content.get("search"), points))
    return found


def _points(part: str, content: dict[str, Any], fixed: Point) -> list[Point]:
    """The product of a part's sweep and variants."""
    points = []
    fixed = {**fixed, **(content.get("overrides") or {})}
    swept_and_linked = (
        {**linked, **swept}
        for linked in content.get("linked") or [{}]
        for swept in _product(content.get("sweep") or {})
    )
    for turn, swept in enumerate(swept_and_linked):
        backwards = content.get("alternate", False) and turn % 2 == 1
        for rate_of, chosen in list(_variants(content.get("variants")))[:: -1 if backwards else 1]:
            cell = {**fixed, **swept, **chosen}
            if content.get("tuned"):
                rate_of = rate_of or str(cell.get("optimizer"))
                cell["optimizer.lr"] = _rate(part, content["tuned"], cell, rate_of)
            points.append(cell)
    return points


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
    if not isinstance(content.get("alternate", False), bool):
        raise UserError(f"{where}.alternate={content['alternate']} must be true or false.")
    searched: dict[str, Any] = {key: [] for key in searched_keys(where, content.get("search"))}
    linked = _linked_keys(where, content.get("linked"))
    _check_sweep(where, part, {**searched, **linked, **(content.get("sweep") or {})}, extra)
    for name, variant in (variants or {}).items():
        _check_keys(f"{where}.variants.{name}", variant or {}, VARIANT_KEYS)
        sweep = {"optimizer": [], **((variant or {}).get("sweep") or {})}
        _check_sweep(f"{where}.variants.{name}", part, sweep, extra)


def _linked_keys(where: str, linked: Any) -> dict[str, list[Any]]:
    """The keys that `linked` sets, which all of its entries must have."""
    if linked is None:
        return {}
    entries = linked if isinstance(linked, list) else [linked]
    if not (
        entries and all(isinstance(e, dict) and e.keys() == entries[0].keys() for e in entries)
    ):
        raise UserError(f"{where}.linked={linked} must be a list of overrides with the same keys.")
    return {key: [] for key in entries[0]}


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


def _rate(part: str, source: str, cell: Point, rate_of: str) -> float:
    """The rate that a tuning study chose for an optimizer or a variant, and this model."""
    where = f"study.parts.{part}.tuned={source}"
    tuned, file = _winners(where, source, cell)
    if cell.get("model", tuned["model"]) != tuned["model"]:
        raise UserError(f"{where} holds rates for model {tuned['model']}, not for {cell['model']}.")
    winners = tuned["winners"]
    if rate_of not in winners:
        raise UserError(
            f"{file} has no learning rate for optimizer {rate_of}; "
            f"it has {', '.join(sorted(winners))}."
        )
    if winners[rate_of].get("edge_of_grid"):
        _warn_of_edge(file, rate_of, float(winners[rate_of]["lr"]))
    return float(winners[rate_of]["lr"])


@functools.cache
def _warn_of_edge(file: str, rate_of: str, rate: float) -> None:
    """Say once a command that a rate comes from an unfinished search."""
    print(
        f"WARNING: the rate of {rate_of} in {file}, {rate:.3g}, lies at the edge of the rates "
        "that were tried; a better one may lie beyond.",
        file=sys.stderr,
    )


def _winners(where: str, source: str, cell: Point) -> tuple[dict[str, Any], str]:
    """Model and winners of a file in configs/tuned or of a study's folder, and how to name it."""
    if "/" not in source:
        try:
            return load_group("tuned", source), f"configs/tuned/{source}.yaml"
        except UserError:
            cure = "run `gefen-bench study=tune`, then `python -m harness.study.tuning runs/tune`"
            raise UserError(f"{where}: there is no configs/tuned/{source}.yaml; {cure}.") from None
    _, by_model = tuning.load(Path(source))
    model = cell.get("model") or next(iter(by_model))
    if model not in by_model:
        raise UserError(f"{where} holds rates for {', '.join(by_model)}, not for {model}.")
    return {"model": model, "winners": tuning.choose(by_model[model])}, source


def _text(value: Any) -> str:
    """A value as Hydra's override grammar reads it."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
