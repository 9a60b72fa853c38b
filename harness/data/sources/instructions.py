"""Pairs from the rows of a data set: a hub id or local files, through `datasets`."""

from collections.abc import Iterable
from string import Formatter
from typing import Any

from harness.config import DataConfig
from harness.data import dataset_rows
from harness.data.documents import SPLITS, split_documents
from harness.data.pairs import Pair, PairSplits
from harness.errors import UserError

KIND = "pairs"
READS = frozenset({
    "path", "subset", "max_documents", "prompt_template", "completion_column",
})  # fmt: skip
LEAST_PAIRS = 3

signature = dataset_rows.signature


def check(config: DataConfig) -> None:
    """As the source hub, and `prompt_template` is a template that names columns.

    Raises:
        UserError: as `harness.data.dataset_rows.check`; a template that names none or is malformed.
    """
    dataset_rows.check(config)
    try:
        names = [name for _, name, _, _ in Formatter().parse(config.prompt_template)]
    except ValueError as error:
        raise UserError(
            f"data.prompt_template={config.prompt_template!r} is no template ({error}); write "
            "columns in braces, as {instruction}."
        ) from error
    if not any(names):
        raise UserError(
            f"data.prompt_template={config.prompt_template!r} names no column; write columns in "
            "braces, as {instruction}."
        )


def read(config: DataConfig) -> PairSplits:
    """The pairs of each split; data without validation and test is split by content.

    Raises:
        UserError: it cannot be loaded, lacks a column, or has too few pairs for three splits.
    """
    found = dataset_rows.split_names(dataset_rows.load(config))
    if set(found) >= set(SPLITS):
        return {split: _pairs(found[split], config) for split in SPLITS}
    pairs = _pairs(found["train"], config)
    by_text = {pair.document.text: pair for pair in pairs}
    if len(by_text) < LEAST_PAIRS:
        raise UserError(
            f"data.path={config.path!r} has {len(by_text)} different pairs; three splits take at "
            f"least {LEAST_PAIRS}."
        )
    splits = split_documents([pair.document for pair in pairs])
    return {split: [by_text[d.text] for d in splits[split]] for split in SPLITS}


def _pairs(rows: Iterable[dict[str, Any]], config: DataConfig) -> list[Pair]:
    pairs, fields = [], _fields(config.prompt_template)
    for index, row in enumerate(dataset_rows.guarded(rows, config)):
        prompt, completion = _filled(config.prompt_template, row, config), _column(row, config)
        if prompt.strip() and completion.strip():
            pairs.append(Pair(f"row {index}", prompt, completion, _filled(fields, row, config)))
    if not pairs:
        raise UserError(
            f"data.path={config.path!r} has no text in {config.completion_column!r} and the "
            "columns of data.prompt_template."
        )
    return pairs


def _fields(template: str) -> str:
    """The template's columns alone, one below the other."""
    parts = Formatter().parse(template)
    found = [(name, spec, conversion) for _, name, spec, conversion in parts if name]
    return "\n".join(
        "{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
        for name, spec, conversion in found
    )


def _filled(template: str, row: dict[str, Any], config: DataConfig) -> str:
    known = {name: "" if value is None else value for name, value in row.items()}
    try:
        return template.format_map(known)
    except (KeyError, AttributeError, IndexError) as error:
        raise UserError(
            f"data.prompt_template={config.prompt_template!r} names a column that "
            f"{config.path!r} does not have; it has: {', '.join(row)}."
        ) from error


def _column(row: dict[str, Any], config: DataConfig) -> str:
    if config.completion_column not in row:
        raise UserError(
            f"data.completion_column={config.completion_column!r} is not a column of "
            f"{config.path!r}; it has: {', '.join(row)}."
        )
    value = row[config.completion_column]
    return value if isinstance(value, str) else ""
