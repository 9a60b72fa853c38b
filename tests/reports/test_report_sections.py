"""What the page says beyond verdicts: peaks, audit, targets, rates, capacity, times, summary."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.store import Record
from reports.app import report_main
from reports.breakdown import disagreement, moments
from reports.capacity import capacity
from reports.figures import draw_all
from reports.load import load
from reports.loss_figures import Curves
from reports.sensitivity import arms, at_best_rates, best_rates, rate_groups, stability_view
from reports.speed import ratios, speed_view
from reports.style import styles
from reports.targets import first_crossing, targets
from reports.text import DASH

Maker = Callable[..., Record]
GB = 10**9


@pytest.mark.parametrize("activation", [0.1, 3.0])
@pytest.mark.parametrize("state", [1.0, 8.0, 80.0])
def test_a_stack_never_exceeds_its_measured_peak(activation: float, state: float) -> None:
    """Phases peak at different moments: kinds that never lived together are not added up."""
    held, transient = 8.0 + state, 1.0
    cell = pd.Series(
        {
            "parameter_bytes": 4.0,
            "gradient_bytes": 4.0,
            "optimizer_state_bytes": state,
            "activation_bytes": activation,
            "step_transient_bytes": transient,
            "peak_steady_step_bytes": held + transient,
            # 80: more was counted than was ever resident
            "peak_train_step_bytes": min(held + max(activation, transient), 40.0),
        }
    )
    train, step = moments(cell)
    for moment in (train, step):
        assert sum(moment.parts.values()) == pytest.approx(moment.peak)
    assert ("activation_bytes" in train.parts) == (activation > transient)
    assert step.parts["step_transient_bytes"] == pytest.approx(transient)


def test_without_phases_the_rest_is_not_split() -> None:
    cell = pd.Series({"peak_bytes": 10.0, "parameter_bytes": 3.0, "gradient_bytes": 3.0})
    (moment,) = moments(cell)
    assert moment.parts["rest_bytes"] == 4.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"closed_form_bytes": 1.004 * GB}, ""),
        ({"closed_form_bytes": 0.99 * GB}, "1.0 % above the closed form"),
        ({"checkpoint_bytes": 0.98 * GB}, "omits state"),
        ({"checkpoint_bytes": 1.05 * GB}, "saves what is not counted"),
        ({"peak_increase_bytes": 0.9 * GB}, "not resident"),
        ({"peak_increase_bytes": 2.0 * GB}, "more than the count"),
        ({"counted_bytes": math.nan, "status": "oom"}, "not counted: oom"),
    ],
)
def test_the_byte_audit_flags_what_is_beyond_the_tolerances(
    changes: dict[str, Any], words: str
) -> None:
    names = ("counted", "closed_form", "checkpoint", "peak_increase")
    row: dict[str, Any] = {f"{name}_bytes": 1.0 * GB for name in names}
    row |= {"device": "cpu", "status": "done", **changes}
    text = disagreement(row)
    assert (words in text) if words else text == ""


def test_small_states_on_a_cpu_are_not_judged_by_resident_memory() -> None:
    small = {f"{name}_bytes": 1e8 for name in ("counted", "closed_form", "checkpoint")}
    row = {**small, "peak_increase_bytes": 3e8, "status": "done"}
    assert disagreement(row | {"device": "cpu"}) == ""
    assert "more than the count" in disagreement(row | {"device": "cuda"})


def test_a_crossing_lies_where_the_line_says() -> None:
    x, y = np.array([0.0, 100.0, 300.0]), np.array([5.0, 4.0, 2.0])
    assert first_crossing(x, y, 4.5) == pytest.approx(50)
    assert first_crossing(x, y, 3.0) == pytest.approx(200)
    assert first_crossing(x, y, 6.0) == 0
    assert math.isnan(first_crossing(x, y, 1.9))


def test_targets_are_adamws_final_loss_and_the_given_one(
    tmp_path: Path, write_study: Callable[..., Path], loss_cell: Maker
) -> None:
    records = [loss_cell("adamw", seed, 3.0 + 0.02 * seed) for seed in range(3)]
    records += [loss_cell("lion", seed, 3.5) for seed in range(2)]
    records += [loss_cell("gefen", seed, 2.9) for seed in range(2)]
    for record in records:
        record.config["task"]["target_loss"] = 3.6
    data = load(write_study(tmp_path, records))
    table = targets(data.runs, Curves(data.curves)).set_index(["variant", "target"])
    own = pytest.approx(3.02)
    level = next(target for _, target in table.index if target == own)
    last = data.curves["tokens"].max()
    assert table.loc[("adamw", level), "tokens"] == pytest.approx(last)
    assert np.isnan(table["tokens"][("lion", level)])
    assert table.loc[("lion", level), "reached"] == 0
    assert table.loc[("gefen", level), "tokens"] < last
    assert (table.xs(3.6, level="target")["reached"] == [3, 2, 2]).all()


def sweep(loss_cell: Maker) -> list[Record]:
    """AdamW best at 0.001, Gefen at 0.002; the largest rate of Gefen diverges."""
    records = []
    for exponent in (-1, 0, 1, 2):
        rate = 1e-3 * 2.0**exponent
        records.append(loss_cell("adamw", 0, 3.0 + 0.1 * exponent**2, lr=rate))
        status = "diverged" if exponent == 2 else "done"
        loss = 3.0 + 0.1 * (exponent - 1) ** 2
        records.append(loss_cell("gefen", 0, loss, lr=rate, status=status))
        records[-1].metrics["loss_spikes_total"] = 1
        spike = {"step": 5, "depth": 0.5 + exponent, "recovery_steps": None if exponent else 7}
        records[-1].metrics["loss_spikes"] = [spike]
    return records


def test_a_sweep_over_rates(
    tmp_path: Path, write_study: Callable[..., Path], loss_cell: Maker
) -> None:
    data = load(write_study(tmp_path, sweep(loss_cell)))
    (group,) = rate_groups(arms(data.runs))
    best = best_rates(group).set_index("variant")["rate"]
    assert best.to_dict() == {"adamw": 0.001, "gefen": 0.002}
    kept = at_best_rates(data.runs)
    chosen = set(zip(kept["optimizer"], kept["lr"], strict=True))
    assert chosen == {("adamw", 0.001), ("gefen", 0.002), ("gefen", 0.001)}
    drawn = {item.name: item for item in draw_all(data, 0.01)}
    legend = drawn["sensitivity"].figure.axes[0].get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert "diverged (colour of the optimizer)" in texts
    assert "AdamW's own rate, 0.001" in texts
    view = stability_view(arms(data.runs), {"adamw": "A", "gefen": "G"})
    last = view[(view["optimizer"] == "G") & (view["lr"] == "0.004")].iloc[0]
    assert (last["diverged"], last["loss spikes"], last["deepest, nats"]) == ("1", "1", "2.50")
    assert last["longest recovery, steps"] == f"{DASH}, 1 lasting"


def probe(memory_cell: Maker, name: str, size: int, limit: int, **given: Any) -> Record:
    """A cell under a cap of 8 GiB that fits up to `limit` sequences."""
    status = "done" if size <= limit else "oom"
    record = memory_cell(name, micro_batch=size, salt=f"{size}", status=status, part="capacity",
                         **given)  # fmt: skip
    record.config["task"]["memory_cap_gib"] = 8.0
    if status == "done":
        record.metrics["tokens_per_second"] = 100.0 * size
    return record


def test_capacity_is_the_largest_below_the_smallest_that_failed(
    tmp_path: Path, write_study: Callable[..., Path], memory_cell: Maker
) -> None:
    limits = {"adamw": 5, "gefen": 11, "lion": 0}
    sizes = (1, 2, 4, 5, 6, 8, 11, 12, 16)
    records = [
        probe(memory_cell, name, size, limit) for name, limit in limits.items() for size in sizes
    ]
    study = write_study(tmp_path / "s", records)
    table = capacity(load(study).runs).set_index("optimizer")
    for name, limit in limits.items():
        fitting = [size for size in sizes if size <= limit]
        found = float(table["largest"][name])
        assert found == max(fitting) if fitting else math.isnan(found)
        assert table.loc[name, "smallest_oom"] == min(set(sizes) - set(fitting))
    assert table.loc["gefen", "tokens_per_second"] == 1100
    assert report_main([str(study)]) == 0
    summary = (study / "report" / "summary.md").read_text()
    assert "micro-batch 11" in summary
    assert "none fits" in summary
    page = (study / "report" / "index.html").read_text()
    assert 'id="failures"' not in page, "running out of memory is what the search looks for"


def test_a_time_ratio_has_an_interval_from_five_processes_on(
    tmp_path: Path, write_study: Callable[..., Path], loss_cell: Maker
) -> None:
    records, times = [], {"adamw": [1.0, 1.1, 0.9, 1.05, 1.2], "gefen": [2.0, 2.5, 1.7, 2.2, 2.1]}
    for name, values in times.items():
        for seed, value in enumerate(values):
            records.append(loss_cell(name, seed))
            records[-1].metrics["step_median_seconds"] = value
    records += [loss_cell("lion", seed) for seed in range(4)]
    table = ratios(load(write_study(tmp_path, records)).runs).set_index("variant")
    logs = np.log(np.array(times["gefen"]) / np.array(times["adamw"]))
    low, high = stats.t.interval(0.95, 4, logs.mean(), stats.sem(logs))
    assert table.loc["gefen", "ratio"] == pytest.approx(math.exp(logs.mean()))
    assert table.loc["gefen", "lower"] == pytest.approx(math.exp(low))
    assert table.loc["gefen", "upper"] == pytest.approx(math.exp(high))
    assert table.loc["lion", "n"] == 4
    assert np.isnan(table["lower"]["lion"])


def test_what_was_not_recorded_is_a_dash(full_study: Path) -> None:
    view = speed_view(load(full_study).runs)
    for name in ("energy J", "model FLOP/step", "optimizer FLOP/step", "kernels s", "fwd+bwd ms"):
        assert set(view[name]) == {DASH}


def test_variants_of_one_optimizer_stay_apart() -> None:
    names = [f"gefen (lr {rate})" for rate in range(12)]
    looks = styles(pd.DataFrame({"optimizer": ["gefen"] * 12, "variant": names}))
    assert len({(look.color, look.line) for look in looks.values()}) == 12


def test_the_summary_holds_whole_tables(full_study: Path, tmp_path: Path) -> None:
    assert report_main([str(full_study), "-o", str(tmp_path)]) == 0
    lines = (tmp_path / "summary.md").read_text().splitlines()
    titles = [line[3:] for line in lines if line.startswith("## ")]
    assert titles == ["Verdicts", "Memory", "Loss", "Speed", "Not finished"]
    for index, line in enumerate(lines):
        if line.startswith("| --- "):
            columns = line.count("|")
            for row in (lines[index - 1], *lines[index + 1 : index + 3]):
                assert row.replace("\\|", "").count("|") in (columns, 0)
    assert "gefen-bench study=synthetic" in lines
