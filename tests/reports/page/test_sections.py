"""What the page says beyond verdicts: peaks, audit, targets, rates, capacity, times, summary."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.cells.store import Record
from reports.data.labels import labels
from reports.data.load import load
from reports.data.rates import arms, at_best_rates, best_rates, rate_groups
from reports.data.report import Report
from reports.data.text import DASH
from reports.figures.memory import moments
from reports.figures.registry import draw_all
from reports.figures.style import styles
from reports.page.report import report_main
from reports.tables.capacity import capacity
from reports.tables.sensitivity import stability_view
from reports.tables.speed import ratios, speed_view

Maker = Callable[..., Record]


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
    drawn = {item.name: item for item in draw_all(Report(data, 0.01))}
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


def test_what_was_not_recorded_is_a_dash(full_study: Path) -> None:
    runs = load(full_study).runs
    view = speed_view(runs, ratios(runs), labels(runs))
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
    assert titles == ["Verdicts", "Memory", "Speed", "Loss", "Not finished"]
    for index, line in enumerate(lines):
        if line.startswith("| --- "):
            columns = line.count("|")
            for row in (lines[index - 1], *lines[index + 1 : index + 3]):
                assert row.replace("\\|", "").count("|") in (columns, 0)
    assert "gefen-bench study=synthetic" in lines
