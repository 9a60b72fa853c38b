"""The figure of loss spikes, on records whose spikes are known."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from harness.cells import store
from reports.data.load import load
from reports.data.report import Report
from reports.figures.spikes import figures


def test_every_recorded_spike_is_drawn_at_its_step(
    tmp_path: Path, write_study: Callable[..., Path], loss_cell: Callable[..., store.Record]
) -> None:
    """A disc for each spike, a line for each run up to where it ended, a cross where it failed."""
    records = [loss_cell(name, seed, 5.0) for name in ("adamw", "lion") for seed in range(3)]
    records[0].metrics["loss_spikes"] = [{"step": 7, "depth": 1.5}, {"step": 40, "depth": 0.5}]
    records[4].metrics["loss_spikes"] = [{"step": 11, "depth": 2.0}]
    records[5].status, records[5].metrics["steps"] = "diverged", 20
    data = load(write_study(tmp_path / "s", records))
    (axis,) = figures(Report(data))[0].figure.axes
    discs = [disc for dots in axis.collections for disc in np.asarray(dots.get_offsets())]
    assert sorted(step for step, _ in discs) == [7, 11, 40]
    ends = [float(np.max(line.get_xdata())) for line in axis.lines]
    assert sorted(ends)[:2] == [20, 20]  # the line and its cross
    assert len(ends) == 7
    texts = {text.get_text() for text in axis.texts}
    assert texts == {"AdamW  (2 spikes in 3 runs)", "Lion  (1 spike in 3 runs)"}
    without = replace(data, runs=data.runs.assign(loss_spikes=None))
    assert figures(Report(without)) == []
