"""On what a verdict was tested, and which verdicts rest on the same cells."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from reports.data.load import TOKEN_LOSS
from reports.data.text import listed, missing, plural

ASPECTS = (
    ("model", "{}"),
    ("seq_len", "{} tokens"),
    ("planned_steps", "{} training steps"),
    ("precision", "{}"),
    ("device", "{}"),
)
Key = tuple[str, str]


def looked_at(study: Mapping[str, Any]) -> str:
    """Whether the study's plan changed after its first look, and what it left behind; "" if not.

    A plan that changes after results were seen can be bent towards them; error rates hold for plans
    made once.
    """
    looks, left = study.get("looks", []), study.get("unlisted_cells", [])
    found = []
    if len(looks) > 1:
        dates = listed(dict.fromkeys(str(look.get("utc") or "unknown")[:10] for look in looks))
        found.append(f"The study was planned {len(looks)} times ({dates}).")
    if left:
        found.append(f"{plural(len(left), 'recorded cell')} outside its plan not counted.")
    return " ".join(found)


def tested_on(cells: pd.DataFrame) -> str:
    """Models, sequence lengths, training steps, precisions and devices of these cells."""
    found = []
    trained = cells["task"].isin(TOKEN_LOSS).all()
    for column, form in ASPECTS:
        if column not in cells or (column == "planned_steps" and not trained):
            continue
        values = [value for value in cells[column].unique() if not missing(value) and value != ""]
        if values:
            found.append(form.format(listed(sorted(map(number, values), key=order))))
    return ", ".join(found)


def number(value: Any) -> Any:
    """A whole number without its fraction."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def order(value: Any) -> tuple[bool, Any]:
    """Numbers by size, then names."""
    return (isinstance(value, str), value)


def sharing(behind: Sequence[tuple[str, str, Sequence[str]]]) -> list[str]:
    """For each verdict, the sentence that names claims with cells of its own; "" if none.

    Each verdict is given as claim, study and cells. Verdicts of one claim (for several subjects)
    share a baseline by design and are not named. Answers from the same data agree or disagree
    together: they are not evidence for each other.
    """
    said = []
    for claim, study, cells in behind:
        counts: dict[str, int] = {}
        for other, where, theirs in behind:
            common = len({*cells} & {*theirs}) if where == study and other != claim else 0
            if common:
                counts[other] = max(common, counts.get(other, 0))
        names = listed(f"{name} ({count})" for name, count in counts.items())
        whole = f"Of its {len(cells)} cells some stand behind other claims too: {names}."
        said.append(f"{whole} Not independent evidence." if counts else "")
    return said
