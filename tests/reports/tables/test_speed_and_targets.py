"""Ratios of step times and of tokens to a target: paired by seed, with an interval where due."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.cells.store import Record
from reports.data.curves import Curves
from reports.data.labels import labels
from reports.data.load import load
from reports.data.text import DASH
from reports.tables.speed import ratios, speed_view
from reports.tables.targets import targets, targets_view

Maker = Callable[..., Record]
Write = Callable[..., Path]
TIMES = {"adamw": [1.0, 1.1, 0.9, 1.05, 1.2], "gefen": [2.0, 2.5, 1.7, 2.2, 2.1]}


def timed(loss_cell: Maker, name: str, seed: int, seconds: float, **given: Any) -> Record:
    record = loss_cell(name, seed, **given)
    record.metrics["step_median_seconds"] = seconds
    return record


def run_after_each_other(records: list[Record]) -> list[Record]:
    """Each process starts when the one before it has ended, ten seconds later."""
    for place, record in enumerate(records):
        start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=10 * place)
        end = start + timedelta(seconds=9)
        record.provenance |= {"started_utc": start.isoformat(), "finished_utc": end.isoformat()}
    return records


def there_and_back(loss_cell: Maker, seeds: int = 5) -> list[Record]:
    records = []
    for seed in range(seeds):
        turn = [timed(loss_cell, name, seed, values[seed]) for name, values in TIMES.items()]
        records += turn if seed % 2 == 0 else turn[::-1]
    return run_after_each_other(records)


def table_of(folder: Path, write_study: Write, records: list[Record]) -> pd.DataFrame:
    return ratios(load(write_study(folder, records)).runs).set_index("variant")


def test_a_time_ratio_has_an_interval_where_processes_took_turns(
    tmp_path: Path, write_study: Write, loss_cell: Maker
) -> None:
    row = table_of(tmp_path, write_study, there_and_back(loss_cell)).loc["gefen"]
    logs = np.log(np.array(TIMES["gefen"]) / np.array(TIMES["adamw"]))
    low, high = stats.t.interval(0.95, 4, logs.mean(), stats.sem(logs))
    assert row["ratio"] == pytest.approx(math.exp(logs.mean()))
    assert (row["lower"], row["upper"]) == pytest.approx((math.exp(low), math.exp(high)))
    assert row["why_no_interval"] == ""


def test_a_time_ratio_has_no_interval_elsewhere_and_says_why(
    tmp_path: Path, write_study: Write, loss_cell: Maker
) -> None:
    few = table_of(tmp_path / "few", write_study, there_and_back(loss_cell, 4)).loc["gefen"]
    assert few["why_no_interval"] == "fewer than 5 pairs"
    cells = sorted(there_and_back(loss_cell), key=lambda record: record.config["optimizer"]["name"])
    apart = table_of(tmp_path / "apart", write_study, run_after_each_other(cells)).loc["gefen"]
    twice = there_and_back(loss_cell)
    again = timed(loss_cell, "gefen", 0, 4.0, salt="again")
    again.provenance = twice[1].provenance
    double = table_of(tmp_path / "double", write_study, [*twice, again]).loc["gefen"]
    assert double["why_no_interval"] == "several cells have the same seeds"
    values = [3.0, *TIMES["gefen"][1:]]  # the first seed's two cells count as one, 2 and 4
    expected = stats.gmean(np.array(values) / np.array(TIMES["adamw"]))
    assert double["ratio"] == pytest.approx(expected)
    assert (few["n"], apart["n"], double["n"]) == (4, 5, 5)
    for row in (few, apart, double):
        assert row["ratio"] > 1
        assert np.isnan(row["lower"])
        assert row["why_no_interval"]


def test_times_of_different_batches_and_threads_are_not_one_ratio(
    tmp_path: Path, write_study: Write, loss_cell: Maker
) -> None:
    records = there_and_back(loss_cell)
    larger = [timed(loss_cell, name, 0, value, micro_batch=8, salt="8")
              for name, value in (("adamw", 1.0), ("gefen", 9.0))]  # fmt: skip
    lone = timed(loss_cell, "lion", 0, 5.0)
    lone.provenance["threads"] = 64
    data = load(write_study(tmp_path, [*records, *larger, lone]))
    table = ratios(data.runs)
    assert sorted(table["micro_batch"]) == [4, 8]
    assert table.set_index("micro_batch")["ratio"][8] == pytest.approx(9.0)
    assert set(table["optimizer"]) == {"gefen"}  # no AdamW ran with 64 threads
    assert "9" in " ".join(
        speed_view(data.runs, table, labels(data.runs)).filter(like="AdamW").iloc[:, 0]
    )


def test_targets_are_adamws_last_loss_of_the_same_seed_and_the_given_one(
    tmp_path: Path, write_study: Write, loss_cell: Maker
) -> None:
    records = [loss_cell("adamw", seed, 3.0 + 0.02 * seed) for seed in range(3)]
    records += [loss_cell("lion", seed, 3.03) for seed in range(3)]
    records += [loss_cell("gefen", seed, 2.9) for seed in range(3)]
    records += [loss_cell("galore", 7, 2.0)]  # AdamW has no such seed
    records += [loss_cell(name, 0, 1.0, kind="classify") for name in ("adamw", "gefen")]
    for record in records:
        record.config["task"]["target_loss"] = 3.6
    data = load(write_study(tmp_path, records))
    table = targets(data.runs, Curves(data.curves)).set_index(["variant", "origin"])
    last = float(data.curves["tokens"].max())
    own = table.xs("last evaluation of adamw, same seed", level="origin")
    assert own["target"].to_dict() == pytest.approx(dict.fromkeys(own.index, 3.02))
    assert own["reached"].to_dict() == {"adamw": 3, "lion": 1, "gefen": 3, "galore": 0}
    assert own["n"].to_dict() == {"adamw": 3, "lion": 3, "gefen": 3, "galore": 0}
    assert own["tokens"]["adamw"] == pytest.approx(last)
    assert np.isnan(own["tokens"]["lion"])  # the one seed that crosses is no mean of three
    assert np.isnan(own["ratio"]["lion"])  # nor is it at the two where it does not
    assert (own["pairs"]["lion"], own["shared"]["lion"]) == (1, 3)
    # Each seed by interpolation of its own curve, against AdamW's whole schedule.
    curves = data.curves[data.curves["key"] == "eval/loss"]
    ratio = []
    for record in records[6:9]:
        curve = curves[curves["id"] == record.id]
        goal = 3.0 + 0.02 * record.config["seed"]
        place = np.interp(-goal, -curve["value"].to_numpy(), curve["tokens"].to_numpy())
        ratio.append(place / last)
    assert own["tokens"]["gefen"] == pytest.approx(np.mean(ratio) * last)
    assert own["ratio"]["gefen"] == pytest.approx(stats.gmean(ratio))
    assert own["pairs"]["gefen"] == 3
    assert np.isnan(own["upper"]["gefen"])
    given = table.xs("task.target_loss", level="origin")
    assert given["reached"].to_dict() == {"adamw": 3, "lion": 3, "gefen": 3, "galore": 1}
    table = targets(data.runs, Curves(data.curves))
    shown = targets_view(table, labels(data.runs))["tokens over AdamW's"]
    assert {DASH, "reached 1 of 3"} < set(shown)
    assert shown.str.endswith(", 3 pairs").sum() == 3  # gefen at both targets, lion at the given
