"""Tables from known counts; figures for studies that hold only a part of the measurements."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from harness.cells.store import Record
from reports.data.load import load
from reports.data.report import Report
from reports.figures.layout import ticks_at
from reports.figures.registry import Drawn, draw_all
from reports.figures.style import looks_by_name, styles
from reports.page.page import DPI, write_png
from reports.tables.layout import aligned, compact
from reports.tables.runs import runs_table, summary_table, summary_view

Maker = Callable[..., Record]


def test_ratio_and_saving_come_from_counts(
    tmp_path: Path, write_study: Callable[..., Path], memory_cell: Maker
) -> None:
    parameters = 200_000_000
    records = [
        memory_cell("adamw", parameters=parameters, state_bytes=1_600_000_800),
        memory_cell("gefen", parameters=parameters, state_bytes=200_000_100),
        memory_cell("lion", parameters=parameters, precision="bf16_pure"),
    ]
    table = runs_table(load(write_study(tmp_path, records)).runs).set_index("optimizer")
    assert table.loc["gefen", "state_ratio_to_baseline"] == 1_600_000_800 / 200_000_100
    saved = (1_600_000_800 - 200_000_100) / parameters * 1e9 / 2**30
    assert table.loc["gefen", "gib_saved_per_billion"] == pytest.approx(saved)
    assert table.loc["gefen", "baseline_id"] == records[0].id
    assert table.loc["adamw", "state_ratio_to_baseline"] == 1.0
    assert np.isnan(table.loc["lion", "state_ratio_to_baseline"])


def test_the_summary_counts_finished_and_failed_cells(full_study: Path) -> None:
    table = runs_table(load(full_study).runs)
    summary = summary_table(table)
    row = summary[(summary["optimizer"] == "lion") & (summary["seq_len"] == 1024)].iloc[0]
    assert (row["n"], row["failed"]) == (1, 1)
    row = summary[(summary["optimizer"] == "gefen") & (summary["seq_len"] == 1024)].iloc[0]
    chosen = table[(table["optimizer"] == "gefen") & (table["seq_len"] == 1024)]
    assert row["final_eval_loss"] == pytest.approx(chosen["final_eval_loss"].mean())
    assert row["cells"].split() == list(chosen["id"])


@pytest.mark.parametrize("task", ["memory", "pretrain"])
def test_the_terminal_table_fits_100_columns(full_study: Path, task: str) -> None:
    view = summary_view(summary_table(runs_table(load(full_study).runs)), task)
    text = aligned(compact(view)[1])
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) == len(view) + 2


@pytest.fixture(scope="module")
def drawings(full_study: Path) -> dict[str, Drawn]:
    """The figures of the full synthetic study, drawn once."""
    return {drawn.name: drawn for drawn in draw_all(Report(load(full_study), 0.01))}


def test_every_figure_of_a_full_study(drawings: dict[str, Drawn]) -> None:
    assert set(drawings) == {
        *("loss_tokens", "loss_seconds", "loss_difference", "final_loss"),
        *("state_bytes", "memory", "step_time", "step_ratio"),
    }
    for drawn in drawings.values():
        assert drawn.cells
        assert "nan" not in drawn.caption


def test_failed_cells_stay_visible(drawings: dict[str, Drawn]) -> None:
    def words(name: str) -> str:
        figure = drawings[name].figure
        return " ".join(text.get_text() for axis in figure.axes for text in axis.texts)

    for name in ("memory", "state_bytes", "step_time"):
        assert "out of memory" in words(name)
    assert "diverged" in words("final_loss")
    assert "Lion, seed 1: diverged" in words("loss_tokens")


def test_a_memory_only_study(
    tmp_path: Path, write_study: Callable[..., Path], memory_cell: Maker
) -> None:
    data = load(write_study(tmp_path, [memory_cell("adamw"), memory_cell("gefen")]))
    names = [drawn.name for drawn in draw_all(Report(data, 0.01))]
    assert names == ["memory", "state_bytes", "step_time", "step_ratio"]


def test_a_loss_only_study_of_one_optimizer(
    tmp_path: Path, write_study: Callable[..., Path], loss_cell: Maker
) -> None:
    record = loss_cell("gefen", 0)
    kept = ("steps", "tokens", "train_seconds", "final_eval_loss", "final_eval_bits_per_byte")
    record.metrics = {key: record.metrics[key] for key in kept}
    data = load(write_study(tmp_path, [record]))
    names = [drawn.name for drawn in draw_all(Report(data, 0.01))]
    assert names == ["loss_tokens", "loss_seconds", "final_loss"]


def test_a_study_in_which_everything_failed(
    tmp_path: Path, write_study: Callable[..., Path], memory_cell: Maker, loss_cell: Maker
) -> None:
    records = [memory_cell("gefen", status="oom"), loss_cell("adamw", 0, status="diverged")]
    drawings = draw_all(Report(load(write_study(tmp_path, records))))
    for drawn in drawings:
        drawn.figure.canvas.draw()
    assert drawings, "what failed must show in some figure"


def test_the_legend_comes_from_the_seeds(full_study: Path, drawings: dict[str, Drawn]) -> None:
    data = load(full_study)
    figure = drawings["loss_tokens"].figure
    legend = figure.axes[0].get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    cells = data.runs[(data.runs["optimizer"] == "gefen") & (data.runs["seq_len"] == 256)]
    mean = cells.loc[cells["task"] == "pretrain", "final_eval_loss"].mean()
    assert f"Gefen  {mean:.4f}  (n = 5)" in texts


def test_colours_follow_the_name() -> None:
    few = pd.DataFrame({"optimizer": ["gefen"], "variant": ["gefen"]})
    names = ["zeta", "adamw", "gefen", "alpha"]
    many = pd.DataFrame({"optimizer": names, "variant": names})
    assert styles(few)["gefen"] == styles(many)["gefen"]
    assert list(styles(many)) == ["adamw", "gefen", "alpha", "zeta"]
    assert len({style.color for style in styles(many).values()}) == 4
    assert len({style.marker for style in styles(many).values()}) == 4


def test_unknown_names_take_free_looks_in_alphabetical_order() -> None:
    free = [{"color": "#123456", "marker": "P", "line": "--"}, {"color": "#654321"}]
    free[1] |= {"marker": "X", "line": ":"}
    table = {"named": {"a": {"color": "#000000"}}, "free": free}
    looks = looks_by_name(table, ["d", "c", "a", "b"])
    assert looks["a"] == {"color": "#000000"}
    assert (looks["b"], looks["c"]) == (free[0], free[1])
    # Names that outnumber the looks begin again, lighter and with another line.
    assert looks["d"] == {"color": "#76899d", "marker": "P", "line": "-."}


def test_several_rates_become_variants(
    tmp_path: Path, write_study: Callable[..., Path], loss_cell: Maker
) -> None:
    rates = [1e-3, 2e-3]
    records = [loss_cell("gefen", 0, 3.0 + rate, lr=rate) for rate in rates]
    records.append(loss_cell("adamw", 0))
    data = load(write_study(tmp_path, records))
    assert list(data.runs["variant"]) == ["gefen (lr 0.001)", "gefen (lr 0.002)", "adamw"]
    looks = styles(data.runs)
    assert looks["gefen (lr 0.001)"].color == looks["gefen (lr 0.002)"].color
    assert looks["gefen (lr 0.001)"].line != looks["gefen (lr 0.002)"].line
    assert len(draw_all(Report(data, 0.01))) == 8


@pytest.mark.parametrize(
    ("places", "names"),
    [
        ([3.0, 58.0, 124.0, 134.0], ["3", "58", "124", ""]),
        ([128.0, 256.0, 512.0, 1024.0, 2048.0], ["128", "256", "512", "1,024", "2,048"]),
        ([100.0, 104.0, 108.0, 3000.0], ["100", "", "", "3,000"]),
    ],
)
def test_names_of_ticks_do_not_overlap(places: list[float], names: list[str]) -> None:
    axis = Figure().add_subplot()
    axis.plot(places, places)
    axis.set_xscale("log")
    ticks_at(axis, places)
    assert [label.get_text() for label in axis.get_xticklabels()] == names
    assert axis.get_xticks().tolist() == places


def test_a_palette_keeps_the_picture(drawings: dict[str, Drawn], tmp_path: Path) -> None:
    """Every drawing, beside matplotlib's own file: a third of the bytes, the same to the eye."""
    for drawn in drawings.values():
        small, exact = tmp_path / "small.png", tmp_path / "exact.png"
        write_png(drawn.figure, small)
        drawn.figure.savefig(exact, dpi=DPI)
        assert small.stat().st_size < 0.5 * exact.stat().st_size
        with Image.open(small) as one, Image.open(exact) as other:
            pixels = [np.asarray(image.convert("RGB")).astype(int) for image in (one, other)]
        off = np.abs(pixels[0] - pixels[1])
        assert off.shape == pixels[1].shape
        assert off.mean() < 0.3
        assert np.quantile(off, 0.9999) < 48
        assert tuple(pixels[0][0, 0]) == (255, 255, 255)
