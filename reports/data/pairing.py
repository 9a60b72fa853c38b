"""Which records may be compared: the same data, code, device and precision."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from reports.data.identity import TOKEN_LOSS
from reports.data.values import capped, metric, sharded

COMPARED = ("data_hash", "code_hash", "device", "precision", "ranks")
NAMES = {"data_hash": "data hash", "code_hash": "code hash", "planned_steps": "steps"}
MATCHED = [
    *("id", "optimizer", "model", "precision", "parameters", "state_bytes"),
    *("baseline_id", "baseline_bytes", "reason"),
]
Row = Mapping[Any, Any]


def unlike(left: Row, right: Row, keys: Sequence[str] = COMPARED) -> list[str]:
    """What keeps two records from being compared, as "code hash 1a2b against 3c4d"; [] if none."""
    return [
        f"{NAMES.get(key, key)} {short(left[key])} against {short(right[key])}"
        for key in keys
        if left[key] != right[key]
    ]


def compared(allowed: Sequence[str]) -> tuple[str, ...]:
    """What records must agree in, less what the user or the claim allows to differ."""
    return tuple(key for key in COMPARED if key not in allowed)


def warning(
    left: pd.DataFrame, right: pd.DataFrame, allowed: Sequence[str], between: str = ""
) -> str:
    """The sentence that says in what compared cells differ because it was allowed; "" if nothing.

    `left` and `right` are the cells of the two sides, each with the columns COMPARED.
    """
    found = []
    for key in COMPARED:
        sides = [sorted({short(value) for value in side[key]}) for side in (left, right)]
        if key in allowed and (sides[0] != sides[1] or len(sides[0]) > 1):
            texts = [" and ".join(values) for values in sides]
            found.append(f"{NAMES.get(key, key)} {' against '.join(dict.fromkeys(texts))}")
    where = f" {between}" if between else ""
    return f"WARNING: compared{where} although they differ in {'; '.join(found)}." if found else ""


def several(cells: pd.DataFrame, keys: Sequence[str]) -> str:
    """In what cells that one number would pool differ; "" where they are of one kind."""
    found = []
    for key in keys:
        values = sorted({short(value) for value in cells[key]})
        if len(values) > 1:
            found.append(f"{NAMES.get(key, key)} {' and '.join(values)}")
    return "; ".join(found)


def unfinished(cells: pd.DataFrame) -> list[str]:
    """Cells without a result to compare, each as "gpt2_124m with galore: oom (cell id)"."""
    failed = cells[cells["status"] != "done"]
    return [
        f"{row['model']} with {row['optimizer']}: {row['status']} ({row['id']})"
        for row in failed.to_dict("records")
    ]


def nearest(row: Row, others: list[dict[Any, Any]], keys: Sequence[str] = COMPARED) -> list[str]:
    """The differences to the record of `others` that has the fewest; `others` is not empty."""
    return min((unlike(row, other, keys) for other in others), key=len)


def short(value: Any) -> str:
    """A hash by its first eight digits; a whole number without a fraction; the rest as it is."""
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    text = str(value)
    is_hash = len(text) > 12 and all(digit in "0123456789abcdef" for digit in text)
    return text[:8] if is_hash else text


def counted(runs: pd.DataFrame) -> pd.DataFrame:
    """Cells whose count of the state is whole, with `held_bytes`: the state and its tables.

    A cell that failed may have counted none or a part of its state before it did; only training
    that diverged had built all of it. Probes under a memory cap ask another question. Tables that
    an optimizer keeps outside its state count where the record has them. Under FSDP all ranks hold
    one state between them: theirs are added up, since `parameters` are those of the whole model.
    """
    diverged = runs["status"].eq("diverged") & runs["task"].isin(TOKEN_LOSS)
    whole = runs[(runs["status"].eq("done") | diverged) & ~capped(runs)]
    cut = sharded(whole)
    state = metric(whole, "optimizer_state_bytes")
    state = state.where(~cut, metric(whole, "all_ranks_optimizer_state_bytes"))
    tables = metric(whole, "optimizer_tables_bytes").where(~cut, rank_tables(whole))
    return whole.assign(held_bytes=state + tables.fillna(0))[state > 0]


def rank_tables(cells: pd.DataFrame) -> pd.Series:
    """Bytes of the tables of all ranks of each cell; nan where the record does not list them."""
    if "rank_optimizer_tables_bytes" not in cells:
        return pd.Series(float("nan"), index=cells.index)
    listed = cells["rank_optimizer_tables_bytes"]
    return listed.map(lambda sizes: float(sum(sizes)) if isinstance(sizes, list) else float("nan"))


def match_states(runs: pd.DataFrame, baseline: str, allowed: Sequence[str] = ()) -> pd.DataFrame:
    """Each cell that counted its state, beside a baseline cell of the same model and conditions.

    Bytes are those of `counted`. `allowed` names what the two may differ in (of COMPARED).

    Columns: id, optimizer, model, precision, parameters, state_bytes, baseline_id, baseline_bytes
    (missing where there is no partner), reason (why there is none, else empty).
    """
    wanted = ["id", "optimizer", "model", *COMPARED, "parameters", "held_bytes"]
    cells = counted(runs)[wanted].to_dict("records")
    partners: dict[str, list[dict[Any, Any]]] = {}
    for cell in cells:
        if cell["optimizer"] == baseline:
            partners.setdefault(cell["model"], []).append(cell)
    rows = [
        {**cell, "state_bytes": float(cell["held_bytes"])}
        | partner(cell, partners.get(cell["model"], []), baseline, allowed)
        for cell in cells
    ]
    return pd.DataFrame(rows, columns=MATCHED)


def partner(
    run: Row, candidates: list[dict[Any, Any]], baseline: str, allowed: Sequence[str] = ()
) -> dict[str, Any]:
    """The baseline's cell and counted bytes for `run`, or the reason why there is none."""
    none = {"baseline_id": None, "baseline_bytes": float("nan")}
    if not candidates:
        return none | {"reason": f"{run['model']} was not measured with {baseline}"}
    keys = (*compared(allowed), "parameters")
    same = [cell for cell in candidates if not unlike(run, cell, keys)]
    if not same:
        apart = "; ".join(nearest(run, candidates, keys))
        return none | {"reason": f"{run['model']} with {baseline} differs in {apart}"}
    sizes = sorted({cell["held_bytes"] for cell in same})
    if len(sizes) > 1:
        listed = " and ".join(f"{size:.0f}" for size in sizes)
        return none | {"reason": f"{baseline} on {run['model']} counted {listed} bytes"}
    return {"baseline_id": same[0]["id"], "baseline_bytes": float(sizes[0]), "reason": ""}
