"""The figure of momentum against the size of gradients, where a study's folder has it measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cells import store
from harness.cells.store import Record
from reports.data.load import ReportError, StudyData, load
from reports.data.report import Report
from reports.figures.registry import draw_all

SCALES = (1e-6, 1e-4, 1e-2)


def facts() -> dict[str, Any]:
    """Two optimizers, two steps, three scales; two tensors of which one has no gradient."""
    names = ("stam", "stam_lite")
    gaussian = [
        {"optimizer": name, "step": step, "gradient_rms": scale, "beta1": 0.9 - scale * step / 100}
        for name in names
        for step in (1, 10)
        for scale in reversed(SCALES)
    ]
    tensors = [
        {"optimizer": name, "step": 5, "gradient_rms": rms, "beta1": 0.88}
        for name in names
        for rms in (3e-4, 0.0)
    ]
    summary = [{"optimizer": "stam", "step": 5, "beta1_lowest": 0.88, "beta1_highest": 0.9}]
    config = {"model": {"name": "gpt2_3m"}}
    return {"config": config, "gaussian": gaussian, "tensors": tensors, "summary": summary}


@pytest.fixture
def study(tmp_path: Path, loss_cell: Callable[..., Record], write_study: Callable[..., Path]) -> (
    Callable[[str | None], StudyData]
):  # fmt: skip
    """A study of one cell whose folder holds this text as the file of momenta."""

    def make(text: str | None) -> StudyData:
        folder = write_study(tmp_path / "study", [loss_cell("adamw", 0)])
        if text is not None:
            (folder / store.MOMENTA_FILE).write_text(text)
        return load(folder)

    return make


def test_the_figure_shows_lines_and_tensors(study: Callable[[str | None], StudyData]) -> None:
    drawn = {item.name: item for item in draw_all(Report(study(json.dumps(facts()))))}["momentum"]
    assert drawn.section.key == "stability"
    assert "stam at step 5: 0.880 to 0.900" in drawn.caption
    assert "over all gradients of a model of that size together" in drawn.caption
    axes = drawn.figure.axes
    assert [axis.get_title(loc="left") for axis in axes] == ["STAM", "STAMLite"]
    for axis in axes:
        by_label = {str(line.get_label()): line for line in axis.lines}
        line = by_label["Gaussian gradients, step 10"]
        assert list(line.get_xdata()) == list(SCALES)
        assert list(line.get_ydata()) == pytest.approx([0.9 - 0.1 * scale for scale in SCALES])
        dots = by_label["tensors of gpt2_3m, step 5"]
        assert list(dots.get_xdata()) == [3e-4]
        bounds = [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":"]
        assert pytest.approx(1 / 124e6**0.5) in bounds


def test_without_the_file_there_is_no_figure(study: Callable[[str | None], StudyData]) -> None:
    assert "momentum" not in {item.name for item in draw_all(Report(study(None), 0.01))}


@pytest.mark.parametrize("text", ["{", '{"gaussian": [], "tensors": []}', '{"gaussian": [{}]}'])
def test_a_broken_file_is_one_sentence(study: Callable[[str | None], StudyData], text: str) -> None:
    with pytest.raises(ReportError, match=r"beta1\.json cannot be read"):
        draw_all(Report(study(text), 0.01))
