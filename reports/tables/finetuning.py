"""What fine-tuning changed: losses and exact matches by optimizer, and texts that models wrote."""

from typing import Any

import pandas as pd

from reports.data.labels import labels
from reports.data.load import BASELINE, each
from reports.data.report import Report
from reports.data.text import number_text, plural
from reports.data.values import PANEL, fall_over_spread
from reports.tables.registry import Brief, Grid, Raw, Section

FINETUNING = Section("finetuning", "Fine-tuning", 60)
SAMPLES_SHOWN = 4  # prompts, for each model and length
ALIKE = [*PANEL, "data_hash"]
GAINS = (
    "Nats a token of the held-out completions; means over finished cells. Fall over spread: what "
    "the loss fell by, over the standard deviation of final losses between seeds; below 10 a study "
    "is too short to say much; none where the two losses are over unlike texts. Exact "
    "matches count all generated samples of all seeds."
)
SAMPLES = (
    "Greedy completions of held-out prompts before fine-tuning and after it, by each optimizer, of "
    "the first seed that finished with all of them; [...] where a text was cut."
)


def csv(report: Report) -> dict[str, pd.DataFrame]:
    """finetuning.csv."""
    return {"finetuning": gains(report.plain)}


def grids(report: Report, raw: Raw) -> list[Grid]:
    """What fine-tuning changed, and samples of it."""
    cells, names = report.plain, labels(report.plain)
    changed = gains_view(raw["finetuning"], names)
    return [
        Grid(FINETUNING, "What it changed", GAINS, changed, brief=Brief("Fine-tuning")),
        Grid(FINETUNING, "Samples", samples_note(cells), samples_view(cells, names), place=1),
    ]


def finetuned(runs: pd.DataFrame) -> pd.DataFrame:
    """The fine-tuning cells that finished with samples; no rows for older records or none."""
    if "samples" not in runs:
        return runs.iloc[:0]
    has = runs["samples"].map(lambda value: isinstance(value, list))
    return runs[(runs["task"] == "finetune") & (runs["status"] == "done") & has]


def gains(runs: pd.DataFrame) -> pd.DataFrame:
    """Losses before and after by optimizer, the fall over the spread, and exact matches."""
    cells, rows = finetuned(runs), []
    for key, group in cells.groupby([*ALIKE, "variant"], dropna=False, sort=False):
        sd = float(group["final_eval_loss"].std())  # NaN for one seed
        rows.append(
            {
                **dict(zip([*ALIKE, "variant"], key, strict=True)),
                "n": len(group),
                "pretrained": bool(group["pretrained"].all()),
                "initial_eval_loss": float(group["initial_eval_loss"].mean()),
                "final_eval_loss": float(group["final_eval_loss"].mean()),
                "final_eval_loss_sd": sd,
                "fall_over_spread": fall_over_spread(group),
                "exact_matches_before": int(group["exact_matches_before"].sum()),
                "exact_matches": int(group["exact_matches"].sum()),
                "samples_total": int(group["samples_total"].sum()),
                "cells": " ".join(group["id"]),
            }
        )
    return pd.DataFrame(rows)


def gains_view(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """`gains` in human units."""
    rows = [
        {
            "optimizer": names.get(row.variant, row.variant),
            "model": row.model if row.pretrained else f"{row.model} (random weights)",
            "seq": row.seq_len,
            "precision": row.precision,
            "n": row.n,
            "loss before": number_text(row.initial_eval_loss, 4),
            "loss after": number_text(row.final_eval_loss, 4),
            "sd of seeds": number_text(row.final_eval_loss_sd, 4),
            "fall/spread": number_text(row.fall_over_spread, 1),
            "exact before": f"{row.exact_matches_before} of {row.samples_total}",
            "exact after": f"{row.exact_matches} of {row.samples_total}",
            "cells": row.cells,
        }
        for row in each(table)
    ]
    return pd.DataFrame(rows)


def samples_view(runs: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """The first prompts and what followed them: the person's text, and each model's."""
    cells, rows = finetuned(runs), []
    for key, group in cells.groupby(ALIKE, dropna=False, sort=False):
        shown = _common_seed(group)
        first = shown.iloc[0]
        for number, sample in enumerate(first["samples"][:SAMPLES_SHOWN], 1):
            where = {"model": str(key[0]), "prompt": f"{number}"}
            rows.append({**where, "text by": "prompt", "text": sample["prompt"], "exact": ""})
            rows.append({**where, "text by": "a person", "text": sample["completion"], "exact": ""})
            rows.append({**where, "text by": "before", **_said(sample, "before", "exact_before")})
            rows += [
                {**where, "text by": names.get(row.variant, row.variant)}
                | _said(row.samples[number - 1], "after", "exact")
                for row in each(shown)
            ]
    return pd.DataFrame(rows)


def samples_note(runs: pd.DataFrame) -> str:
    """What the table shows, and how many samples a record has."""
    cells = finetuned(runs)
    most = max((len(value) for value in cells["samples"]), default=0) if len(cells) else 0
    held = f" A record holds {plural(most, 'sample')}." if most > SAMPLES_SHOWN else ""
    return SAMPLES + held


def _said(sample: dict[str, Any], text: str, exact: str) -> dict[str, str]:
    return {"text": sample[text], "exact": "yes" if sample[exact] else "no"}


def _common_seed(group: pd.DataFrame) -> pd.DataFrame:
    """One cell for each variant, of the seed that most of them share; the baseline first."""
    seeds = ["model_seed", "data_seed"]
    shared = group.groupby(seeds)["variant"].nunique()
    best = shared[shared == shared.max()].index[0]
    chosen = group[(group["model_seed"] == best[0]) & (group["data_seed"] == best[1])]
    chosen = chosen.drop_duplicates("variant")
    # The same prompts: of another length or budget of tokens they would be others.
    first = chosen.iloc[0]["samples"]
    same = chosen["samples"].map(lambda value: _prompts(value) == _prompts(first))
    return chosen[same].sort_values("optimizer", key=lambda names: names != BASELINE, kind="stable")


def _prompts(samples: list[dict[str, Any]]) -> list[str]:
    return [sample["prompt"] for sample in samples]
