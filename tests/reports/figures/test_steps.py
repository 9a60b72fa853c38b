"""Tables and the roofline figure from an invented document of gefen-step."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reports.data import step_bench as step_tables
from reports.data.load import ReportError
from reports.figures import steps as step_figures
from reports.tables.steps import view as step_view

BANDWIDTH = 2e9
MOVED = {"adamw_fused": 28_000_000, "gefen": 18_200_000}
STEP = {"adamw_fused": 0.020, "gefen": 0.013}


def entry(name: str) -> dict[str, Any]:
    step = STEP[name]
    return {
        "step_median_seconds": step,
        "step_p10_seconds": 0.9 * step,
        "step_p90_seconds": 1.2 * step,
        "first_step_seconds": 0.5,
        "build_seconds": 12.0,
        "ratio_to_reference": step / STEP["adamw_fused"],
        "ratio_interval_95": [1, 1] if name == "adamw_fused" else [0.6, 0.7],
        "roofline_percent": 100 * MOVED[name] / BANDWIDTH / step,
        "bytes_moved": MOVED[name],
        "bytes_moved_per_parameter": MOVED[name] / 1e6,
        "optimizer_state_bytes": 1_000_000,
        "step_transient_bytes": 2**20,
        "first_step_transient_bytes": 2**21,
    }


def condition(precision: str, **values: Any) -> dict[str, Any]:
    return {
        "model": "invented",
        "precision": precision,
        "parameters": 1_000_000,
        "whole_parameters": 1_000_000,
        "layers": 4,
        "whole_layers": 4,
        "processes": 5,
        "copy_bytes_per_second": BANDWIDTH,
        "candidates": {name: entry(name) for name in STEP},
        "failed_candidates": {"lion": "RuntimeError: it does not run here"},
        **values,
    }


@pytest.fixture
def written(tmp_path: Path) -> Path:
    document = {
        "schema_version": 1,
        "kind": "step_bench",
        "reference": "adamw_fused",
        "optimizers": {"adamw_fused": "adamw", "gefen": "gefen", "lion": "lion"},
        "conditions": [
            condition("fp32"),
            condition("bf16_pure", layers=3, parameters=800_000),
            {**condition("fp32"), "model": "failed", "candidates": {}, "failed_candidates": {}},
        ],
    }
    (tmp_path / step_tables.FILE).write_text(json.dumps(document))
    return tmp_path


def test_every_candidate_has_a_row_and_a_floor(written: Path) -> None:
    table = step_tables.frame(step_tables.read(written))
    assert len(table) == 2 * 3
    done = table[table["status"] == "done"]
    assert np.allclose(done["floor_seconds"], done["bytes_moved"] / BANDWIDTH)
    gefen = done[done["candidate"] == "gefen"].iloc[0]
    assert (gefen["ratio_lower_95"], gefen["ratio_upper_95"]) == (0.6, 0.7)
    lion = table[table["candidate"] == "lion"].iloc[0]
    assert np.isnan(lion["step_median_seconds"])
    assert lion["status"] == "RuntimeError: it does not run here"


def test_the_table_reads_as_text(written: Path) -> None:
    view = step_view(step_tables.frame(step_tables.read(written)), "adamw_fused")
    row = view[(view["optimizer"] == "gefen") & (view["precision"] == "bf16")].iloc[0]
    assert row["step, ms"] == "13.0"
    assert row["× adamw_fused (95 %)"] == "0.65 (0.6 to 0.7)"
    assert row["B/param moved"] == "18.20"
    assert row["% of roofline"] == "70.0"
    assert row["first transient"] == "2.00 MiB"
    assert view[view["optimizer"] == "lion"].iloc[0]["step, ms"] == "–"


def test_the_figure_draws_floor_and_step(written: Path) -> None:
    figure = step_figures.roofline(step_tables.frame(step_tables.read(written)))
    assert len(figure.axes) == 2
    for axis in figure.axes:
        names = [label.get_text() for label in axis.get_yticklabels()]
        assert names == ["lion", "adamw_fused", "gefen"]  # the fastest on top
        ends = sorted(bar.get_x() + bar.get_width() for bar in axis.patches)
        assert ends == pytest.approx(sorted(1e3 * moved / BANDWIDTH for moved in MOVED.values()))
        markers = [line for line in axis.lines if line.get_marker() not in ("None", "")]
        steps = {float(line.get_ydata()[0]): float(line.get_xdata()[0]) for line in markers}
        assert steps == pytest.approx({1.0: 20.0, 2.0: 13.0})
        texts = " ".join(text.get_text() for text in axis.texts)
        assert "70 % of roofline, 0.65 × adamw_fused" in texts
        assert "it does not run here" in texts
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles[0] == "invented, fp32: 1.00 M parameters, copy 2.00 GB/s"
    assert titles[1] == "invented, bf16, 3 of 4 layers: 800 k parameters, copy 2.00 GB/s"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == 3


def test_files_are_written_beside_the_document(
    written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert step_figures.main([str(written / step_tables.FILE)]) == 0
    names = {path.name for path in written.iterdir()}
    assert names == {
        "step_bench.json",
        *("roofline.png", "roofline.svg", "step_bench.csv", "step_bench.md"),
    }
    assert str(written / "roofline.png") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "does not exist."),
        ("{", "is not readable JSON"),
        ("[]", "is not the output of gefen-step."),
        ('{"kind": "step_bench", "schema_version": 9}', "has schema_version 9"),
        (
            '{"kind": "step_bench", "schema_version": 1, "optimizers": {}, "conditions": []}',
            "no finished process",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    text: str | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / step_tables.FILE).write_text(text)
    assert step_figures.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_another_document_raises(tmp_path: Path) -> None:
    (tmp_path / step_tables.FILE).write_text('{"kind": "study"}')
    with pytest.raises(ReportError, match="not the output"):
        step_tables.read(tmp_path)
