"""Display names of optimizers and their variants, on pages and in figures."""

from functools import cache
from importlib import resources

import pandas as pd
import yaml


def labels(runs: pd.DataFrame) -> dict[str, str]:
    """Display labels by the values of `runs.variant`: "gefen (lr 0.002)" is "Gefen (lr 0.002)"."""
    names = dict(zip(runs["variant"], runs["optimizer"], strict=True))
    return {variant: label(name) + variant[len(name) :] for variant, name in names.items()}


def label(optimizer: str) -> str:
    """How one optimizer is called: its entry in labels.yaml, else its name."""
    return known().get(optimizer, optimizer)


@cache
def known() -> dict[str, str]:
    """The content of labels.yaml, read once."""
    text = resources.files("reports.data").joinpath("labels.yaml").read_text(encoding="utf-8")
    found: dict[str, str] = yaml.safe_load(text)
    return found
