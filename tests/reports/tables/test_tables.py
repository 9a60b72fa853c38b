"""Tables never average what does not compare."""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from reports.data.load import load
from reports.tables.runs import runs_table, summary_table


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"code_hash": "f" * 64}, "code ffffffff"),
        ({"data_hash": "e" * 64}, "data eeeeeeee"),
        ({"eval_split": "validation"}, "split validation"),
        ({"steps": 600}, "steps 600"),
    ],
)
def test_unlike_cells_of_one_optimizer_stand_in_rows_of_their_own(
    tmp_path: Path,
    write_study: Callable[..., Path],
    loss_cell: Callable,
    given: dict[str, object],
    shown: str,
) -> None:
    records = [loss_cell("adamw", 0, 3.0), loss_cell("adamw", 1, 4.0, salt="other", **given)]
    data = load(write_study(tmp_path / "study", records))
    summary = summary_table(runs_table(data.runs))
    assert sorted(summary["n"]) == [1, 1]
    assert sorted(summary["final_eval_loss"]) == [3.0, 4.0]
    assert any(shown in variant for variant in summary["variant"])


@pytest.mark.parametrize(("key", "value"), [("grad_clip", 1e9), ("gradient_noise", 1.0)])
def test_noise_and_clipping_are_conditions_and_a_record_without_them_has_the_usual_ones(
    tmp_path: Path,
    write_study: Callable[..., Path],
    loss_cell: Callable,
    key: str,
    value: float,
) -> None:
    records = [loss_cell("adamw", seed, 3.0 + seed, salt=str(seed)) for seed in range(3)]
    records[1].config["task"] |= {"grad_clip": 1.0, "gradient_noise": 0.0}
    records[2].config["task"][key] = value
    data = load(write_study(tmp_path / "study", records))
    summary = summary_table(runs_table(data.runs)).set_index("n")
    assert sorted(summary.index) == [1, 2]
    assert summary["final_eval_loss"].to_dict() == {2: 3.5, 1: 5.0}
    assert f"{key} {value}" in summary["variant"][1]


def test_bytes_and_times_carry_no_interval(full_study: Path) -> None:
    summary = summary_table(runs_table(load(full_study).runs))
    assert [name for name in summary if name.endswith("_ci95")] == [
        "final_eval_loss_ci95",
        "final_eval_bits_per_byte_ci95",
    ]


def test_many_metrics_bring_no_warning(
    tmp_path: Path, write_study: Callable[..., Path], loss_cell: Callable
) -> None:
    """Texts become a block each, and pandas warns of a hundred when a column is added."""
    record = loss_cell("adamw", 0, 3.0)
    texts = {f"text_{index}": "a" for index in range(120)}
    record = dataclasses.replace(record, metrics=record.metrics | texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load(write_study(tmp_path / "study", [record]))
        runs_table(data.runs)
        data.runs.assign(more=1)
    assert data.runs["text_7"].tolist() == ["a"]
