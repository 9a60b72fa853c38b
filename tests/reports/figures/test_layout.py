"""Figures of fixed positions: labels stay inside whatever their ticks are."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from reports.figures.layout import narrow, plots, roomy


@pytest.mark.parametrize(
    "ends", [(0, 5), (0, 250), (-0.004, 0.012), (0.00012, 0.00018), (-12000, 52000)]
)
def test_labels_stay_inside_the_figure(ends: tuple[float, float]) -> None:
    with narrow():
        figure, (axis,) = plots(1, [0])
        axis.plot([0.0, 0.0158], ends)
        axis.set(xlabel="Training tokens, millions", ylabel="Loss minus AdamW's, nats/token")
    before = axis.get_position().x1
    roomy(figure)
    assert axis.get_position().x1 == pytest.approx(before)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    box = axis.get_tightbbox(renderer)
    assert box is not None
    assert box.x0 >= figure.bbox.x0
    assert box.x1 <= figure.bbox.x1
