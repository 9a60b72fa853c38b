"""All optimizers side by side: the table by hand, the figures' names free of overlap."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from harness.cells.store import Record
from reports.data import tuned_rates as edge_rates
from reports.data.labels import labels
from reports.data.load import StudyData, load
from reports.data.report import Report
from reports.figures import rivals as rival_figures
from reports.figures.registry import draw_all
from reports.tables.rivals import frontier, rivals, rivals_view

Maker = Callable[..., Record]
# Invented losses; bytes per parameter as the registry's closed forms have them for GPT-2 124M.
FIELD = {
    "adamw": (8.0, 5.85), "adamw8bit": (2.04, 5.85), "galore": (4.13, 5.60), "lion": (4.0, 5.86),
    "gefen": (1.02, 5.86), "gefen_4bit": (0.58, 5.87), "lamb": (8.0, 5.95), "adan": (16.0, 5.70),
    "adafactor": (0.01, 6.10), "muon": (5.27, 5.52), "adam_mini": (4.01, 5.87),
    "lion8bit": (1.02, 5.88), "apollo": (4.13, 5.62), "apollo_mini": (2.55, 5.75),
    "stam": (8.0, 5.84), "stam_lite": (4.0, 6.00), "gefen_x": (1.03, 8.40),
}  # fmt: skip
PARAMETERS = 2_700_000


def field_records(make: Maker) -> list[Record]:
    """Two seeds of each of seventeen optimizers."""
    records = []
    for index, (name, (state, loss)) in enumerate(FIELD.items()):
        for seed in (0, 1):
            record = make("adamw", seed, loss + 0.04 * seed, model="gpt2_3m", seq_len=128)
            made = make("adamw", seed, loss, model="gpt2_3m", seq_len=128, salt=name)
            record.id = made.id
            record.config["optimizer"] |= {"name": name}
            record.metrics |= {
                "parameters": PARAMETERS,
                "optimizer_state_bytes": round(PARAMETERS * state),
                "peak_bytes": (150 + 6 * state + index) * 2**20,
                "tokens_per_second": 2600 - 100 * (index % 5) - 7 * index,
            }
            records.append(record)
    return records


@pytest.fixture(scope="module")
def study(
    tmp_path_factory: pytest.TempPathFactory, loss_cell: Maker, write_study: Callable[..., Path]
) -> StudyData:
    records = field_records(loss_cell)
    records.append(loss_cell("lion", 9, 6.0, model="gpt2_3m", seq_len=128, status="diverged"))
    return load(write_study(tmp_path_factory.mktemp("field"), records, claims=[]))


def test_a_row_without_a_loss_lets_no_worse_one_to_the_frontier() -> None:
    columns = {"state_bytes_per_parameter": [1.0, 2.0, 3.0], "final_eval_loss": [5.0, np.nan, 7.0]}
    assert list(frontier(pd.DataFrame(columns))["frontier"]) == [True, False, False]
    columns["final_eval_loss"] = [np.nan, 5.0, 4.0]
    assert list(frontier(pd.DataFrame(columns))["frontier"]) == [False, True, True]


def test_the_table_has_every_optimizer_and_who_is_not_dominated(
    study: StudyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        {"file": "x", "model": "gpt2_3m", "seq_len": 128, "lr": 1e-3, "optimizer": name, "edge": e}
        for name, e in (("muon", True), ("lamb", False))
    ]
    monkeypatch.setattr(edge_rates, "winners", lambda: found)
    table = rivals(study.runs).set_index("optimizer")
    assert len(table) == len(FIELD)
    front = {
        name
        for name, own in FIELD.items()
        if not any(o != own and o[0] <= own[0] and o[1] <= own[1] for o in FIELD.values())
    }
    assert set(table.index[table["frontier"]]) == front == {
        "adafactor", "gefen", "gefen_4bit", "adamw8bit", "apollo_mini", "galore", "muon"
    }  # fmt: skip
    assert table.loc["muon", "state_bytes_per_parameter"] == pytest.approx(5.27)
    assert table.loc["muon", "final_eval_loss"] == pytest.approx(5.54)
    assert tuple(table.loc["muon", ["lowest_loss", "highest_loss"]]) == pytest.approx((5.52, 5.56))
    assert list(table.loc[["muon", "lamb", "adan"], "edge"]) == [True, False, None]
    view = rivals_view(rivals(study.runs), labels(study.runs)).set_index("optimizer")
    assert view.index[0] == "Muon"
    assert view.loc["Lion", "n"] == "2 + diverged"
    assert list(view.loc[["Muon", "LAMB", "Adan"], "edge of its grid"]) == ["yes", "no", "–"]
    assert "model" not in view
    assert all(len(cells.split()) >= 2 for cells in view["cells"])


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Names of a figure's axes that lie over one another or outside the axes."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    axis = figure.axes[0]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in axis.texts]
    assert len(boxes) == len(FIELD)
    frame = axis.get_window_extent(renderer).padded(1)
    bad = [
        (a, b) for i, (a, one) in enumerate(boxes) for b, two in boxes[i + 1 :] if one.overlaps(two)
    ]
    inside = [(t, "") for t, b in boxes if not (frame.x0 <= b.x0 and b.x1 <= frame.x1)]
    marks = axis.transData.transform([line.get_xydata()[0] for line in axis.lines
                                      if line.get_marker() not in ("None", None, "")])  # fmt: skip
    hidden = [(t, "mark") for t, b in boxes for mark in marks if b.contains(*mark)]
    return [*bad, *inside, *hidden]


@pytest.mark.parametrize("most", [rival_figures.MOST_NAMES, len(FIELD)])
def test_no_name_lies_over_another_or_over_a_mark(
    study: StudyData, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither beside the marks nor, where there are too many, as numbers with a key below."""
    monkeypatch.setattr(rival_figures, "MOST_NAMES", most)
    drawn = {item.name: item for item in draw_all(Report(study, 0.01))}
    for name in ("pareto", "memory_speed"):
        assert overlaps(drawn[name].figure) == []
        assert set(drawn[name].cells) <= set(study.runs["id"])
    figure = drawn["pareto"].figure
    axis = figure.axes[0]
    assert axis.get_xscale() == "log"
    numbered = most < len(FIELD)
    assert {text.get_text() for text in axis.texts}.isdisjoint({"Muon"}) == numbered
    key = [text.get_window_extent(FigureCanvasAgg(figure).get_renderer()) for text in figure.texts]
    assert len(key) == numbered * len(FIELD)
    assert not any(one.overlaps(two) for i, one in enumerate(key) for two in key[i + 1 :])
    assert all(figure.bbox.containsx(box.x1) and figure.bbox.containsy(box.y0) for box in key)
    texts = figure.texts if numbered else axis.texts
    assert any("8.42" in text.get_text() for text in texts)  # beyond the frame: its loss
    front = next(line for line in axis.lines if len(line.get_xdata()) == 7)
    assert (np.diff(front.get_ydata()) < 0).all()


def test_few_optimizers_are_no_field(
    tmp_path: Path, loss_cell: Maker, write_study: Callable[..., Path]
) -> None:
    records = [loss_cell(name, 0) for name in ("adamw", "gefen", "lion", "galore", "adamw8bit")]
    data = load(write_study(tmp_path, records))
    assert rivals(data.runs).empty
    assert "pareto" not in {item.name for item in draw_all(Report(data, 0.01))}
