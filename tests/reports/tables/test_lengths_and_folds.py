"""The share of the state over lengths, and repeated folds, on records of known truth."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from harness.cells import store
from reports.data.load import load
from reports.data.text import DASH
from reports.figures.scaling import optimizer_share
from reports.page.report import report_main
from reports.stats.intervals import corrected_interval, mean_interval
from reports.stats.power import detectable
from reports.tables.folds import folds, folds_view
from reports.tables.lengths import shares

Make = Callable[..., store.Record]
LENGTHS = (128, 2048, 32768)


def length_records(memory_cell: Make, **model: Any) -> list[store.Record]:
    """AdamW's state is 80 MB and Gefen's 10, beside 100 MB and 10 kB a token."""
    found = []
    for length in LENGTHS:
        for name, state in (("adamw", 80e6), ("gefen", 10e6)):
            record = memory_cell(name, model="llama_4m", seq_len=length, salt=str(model))
            metrics = {"optimizer_state_bytes": int(state)}
            metrics["peak_bytes"] = int(state + 100e6 + 1e4 * length)
            config = {**record.config, "model": {"name": "llama_4m", **model}}
            found.append(
                dataclasses.replace(record, config=config, metrics=record.metrics | metrics)
            )
    return found


def test_the_share_of_the_state_falls_with_the_length(
    memory_cell: Make, write_study: Callable[..., Path], tmp_path: Path
) -> None:
    again = length_records(memory_cell, activation_checkpointing=True)
    records = [*length_records(memory_cell), *again]
    data = load(write_study(tmp_path / "s", records))
    assert set(data.runs["model"]) == {"llama_4m", "llama_4m+recompute"}
    table = shares(data.runs)
    assert len(table) == 12
    for row in table.to_dict("records"):
        state = {"adamw": 80e6, "gefen": 10e6}[row["variant"]]
        rest = 100e6 + 1e4 * row["seq_len"]
        assert row["state_percent"] == pytest.approx(100 * state / (state + rest), rel=1e-6)
        saved = 100 * (80e6 - state) / (80e6 + rest)
        assert row["peak_saved_percent"] == pytest.approx(saved, abs=1e-6)
    figure = optimizer_share(data.runs)
    assert [len(axis.lines) for axis in figure.axes] == [2, 2]
    shown = {line.get_label(): line.get_ydata()[-1] for line in figure.axes[0].lines}
    assert shown["AdamW"] == pytest.approx(100 * 80 / (180 + 327.68), rel=1e-6)
    assert "tokens" in figure.axes[0].get_xlabel()
    assert "%" in figure.axes[0].get_ylabel()


def fold_records(loss_cell: Make, shift: float, spread: float = 0.01) -> list[store.Record]:
    """Two repetitions of five folds; Gefen's accuracy is AdamW's plus `shift` and noise."""
    random = np.random.default_rng(0)
    found = []
    for seed in (0, 1):
        for fold in range(5):
            level = random.normal(0.95, 0.02)
            for name in ("adamw", "gefen"):
                record = loss_cell(name, seed, loss=1 - level, salt=f"{fold}", kind="classify")
                right = level + (name == "gefen") * (shift + random.normal(0, spread))
                config = {**record.config, "data": {"name": "digits", "folds": 5, "fold": fold}}
                images = {"train_images": 1078, "final_eval_images": 359}
                metrics = {**record.metrics, **images, "final_eval_accuracy": right}
                found.append(dataclasses.replace(record, config=config, metrics=metrics))
    return found


def test_folds_are_paired_and_their_overlap_is_counted(
    loss_cell: Make, write_study: Callable[..., Path], tmp_path: Path
) -> None:
    records = fold_records(loss_cell, shift=-0.03)
    data = load(write_study(tmp_path / "s", records))
    own, other = folds(data.runs).to_dict("records")
    assert (own["variant"], own["n"], other["variant"], other["n"]) == ("adamw", 10, "gefen", 10)
    pairs = zip(records[::2], records[1::2], strict=True)
    values = [b.metrics["final_eval_accuracy"] - a.metrics["final_eval_accuracy"] for a, b in pairs]
    assert other["accuracy_difference"] == pytest.approx(np.mean(values))
    error = np.std(values, ddof=1) * math.sqrt(1 / 10 + 359 / 1078)
    upper = np.mean(values) + stats.t.ppf(0.975, 9) * error
    assert other["accuracy_upper"] == pytest.approx(upper)
    assert other["accuracy_upper"] < 0  # a true difference of three times the spread is found
    assert other["loss_difference"] == 0
    assert math.isnan(other["loss_detectable"])  # no spread was seen, so nothing is known of it
    view = folds_view(folds(data.runs), {"adamw": "AdamW", "gefen": "Gefen"})
    assert view["detectable, nats"].tolist() == [DASH, DASH]
    assert view["minus AdamW, points"].str.startswith("\N{MINUS SIGN}").tolist() == [False, True]


def test_a_pair_without_both_cells_is_lost_and_named(
    loss_cell: Make, write_study: Callable[..., Path], tmp_path: Path
) -> None:
    records = fold_records(loss_cell, shift=0.0)
    records[3] = dataclasses.replace(records[3], status="crashed", metrics={})
    other = folds(load(write_study(tmp_path / "s", records)).runs).to_dict("records")[1]
    assert (other["n"], other["lost"]) == (9, 1)


def test_a_study_without_a_finished_cell_has_no_accuracy(
    loss_cell: Make, write_study: Callable[..., Path], tmp_path: Path
) -> None:
    records = [
        dataclasses.replace(record, status="crashed", metrics={})
        for record in fold_records(loss_cell, shift=0.0)
    ]
    table = folds(load(write_study(tmp_path / "s", records)).runs)
    assert table["lost"].tolist() == [10, 10]
    view = folds_view(table, {"adamw": "AdamW", "gefen": "Gefen"})
    assert view["accuracy, %"].tolist() == [DASH, DASH]


def test_the_report_has_both(
    memory_cell: Make,
    loss_cell: Make,
    write_study: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = [*length_records(memory_cell), *fold_records(loss_cell, shift=0.01)]
    study = write_study(tmp_path / "s", records, claims=[])
    assert report_main([str(study)]) == 0, capsys.readouterr().err
    page = (study / "report/index.html").read_text()
    for words in ("Share of the state over sequence lengths", "Over folds", "detectable, points"):
        assert words in page
    summary = (study / "report/summary.md").read_text()
    assert "## Memory by sequence length" in summary
    assert "## Classification over folds" in summary
    assert (study / "report/folds.csv").is_file()
    assert (study / "report/lengths.csv").is_file()


def test_without_overlap_the_interval_is_the_ordinary_one() -> None:
    values = [0.1, -0.2, 0.4, 0.3]
    plain, found = mean_interval(values), corrected_interval(values, 0.0)
    assert (found.lower, found.upper) == pytest.approx((plain.lower, plain.upper))
    with pytest.raises(ValueError, match="at least 2 needed"):
        corrected_interval([0.1], 0.25)


def test_the_corrected_interval_covers_under_its_own_model() -> None:
    """Results that correlate by n_test / (n_test + n_train), as its authors assume."""
    random, ratio, n, trials = np.random.default_rng(1), 1 / 3, 10, 4000
    rho = ratio / (1 + ratio)
    common = random.normal(size=(trials, 1))
    values = math.sqrt(rho) * common + math.sqrt(1 - rho) * random.normal(size=(trials, n))
    hits = {True: 0, False: 0}
    for row in values.tolist():
        for corrected in hits:
            found = corrected_interval(row, ratio if corrected else 0.0)
            hits[corrected] += found.lower <= 0 <= found.upper
    assert hits[True] / trials == pytest.approx(0.95, abs=0.012)
    assert hits[False] / trials < 0.75  # what the correction is for


def test_the_detectable_difference_is_that_of_a_power_calculation() -> None:
    effect = TTestPower().solve_power(nobs=12, alpha=0.05, power=0.8)
    assert detectable(0.3, 12) == pytest.approx(0.3 * effect, rel=1e-3)
    wider = detectable(0.3, 12, test_over_train=0.25)
    assert wider == pytest.approx(0.3 * effect * math.sqrt(1 + 12 * 0.25), rel=1e-3)
