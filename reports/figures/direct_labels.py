"""Names beside the points that they belong to, without a legend and without overlap."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from reports.figures.style import INK

DISTANCES = (6, 10, 15, 21, 28, 36, 45, 56, 68, 82, 98)  # points between a mark and its name
DIRECTIONS = 16
SIZE = 7.0  # points
MARK = 4.0  # points around the middle of a mark that no name may cover
Place = tuple[float, float]
Line = tuple[Place, Place]


def label_points(axis: Axes, points: Sequence[Place], texts: Sequence[str]) -> None:
    """Write each text near its point (data coordinates) where it covers no mark and no other text.

    Limits and scales of the axis must be set. Crowded points choose first; a name that stands
    further away is led to its point by a line. Where every place is taken the least bad one is.
    """
    figure = axis.get_figure()
    assert isinstance(figure, Figure)
    FigureCanvasAgg(figure)  # measures texts; a figure without a window has no renderer
    unit = figure.dpi / 72
    marks = [(float(x), float(y)) for x, y in axis.transData.transform(np.array(points))]
    frame = axis.get_window_extent()
    taken: list[Bbox] = []
    lines: list[Line] = []
    for index in crowded_first(marks):
        width, height = size_of(axis, texts[index])
        others = marks[:index] + marks[index + 1 :]
        bounds = (marks[index], others, frame, taken, lines, unit)
        best, box = math.inf, frame
        for distance in DISTANCES:
            if best <= distance:  # further away nothing can be better
                break
            for candidate in around(marks[index], distance * unit, width, height):
                found = distance + cost(candidate, *bounds)
                best, box = min((best, box), (found, candidate), key=lambda pair: pair[0])
        taken.append(box)
        lines.append((marks[index], nearest_edge(box, marks[index])))
        write(axis, texts[index], marks[index], box, unit)


def crowded_first(marks: Sequence[Place]) -> list[int]:
    """Indices of points, those with the nearest neighbours first."""

    def room(index: int) -> float:
        gaps = sorted(math.dist(marks[index], other) for other in marks)
        return sum(gaps[1:4])

    return sorted(range(len(marks)), key=room)


def size_of(axis: Axes, text: str) -> tuple[float, float]:
    """Width and height of a name in pixels."""
    probe = axis.text(0, 0, text, fontsize=SIZE)
    box = probe.get_window_extent()
    probe.remove()
    return box.width + 2, box.height


def around(mark: Place, distance: float, width: float, height: float) -> list[Bbox]:
    """Boxes of one size that lie in some direction at a distance (pixels) from a mark."""
    found = []
    for number in range(DIRECTIONS):
        angle = 2 * math.pi * number / DIRECTIONS
        left = mark[0] + distance * math.cos(angle) - width * (1 - math.cos(angle)) / 2
        low = mark[1] + distance * math.sin(angle) - height * (1 - math.sin(angle)) / 2
        found.append(Bbox.from_bounds(left, low, width, height))
    return found


def cost(
    box: Bbox,
    own: Place,
    marks: Sequence[Place],
    frame: Bbox,
    taken: Sequence[Bbox],
    lines: Sequence[Line],
    unit: float,
) -> float:
    """How bad a place is: outside and over other names worst, then marks, then crossed lines."""
    outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
    total = 4000.0 * outside + 2000.0 * sum(box.overlaps(other) for other in taken)
    grown = box.padded(MARK * unit)
    total += 600.0 * sum(grown.contains(*mark) for mark in [own, *marks])
    lead = (own, nearest_edge(box, own))
    total += 150.0 * sum(crosses(lead, other) for other in lines)
    total += 150.0 * sum(passes(lead, other) for other in taken)
    total += 150.0 * sum(passes(line, box) for line in lines)
    near = [Bbox.from_extents(x - unit, y - unit, x + unit, y + unit) for x, y in marks]
    return total + 100.0 * sum(passes(lead, small) for small in near)


def nearest_edge(box: Bbox, mark: Place) -> Place:
    """The point of a box nearest to a mark."""
    return (min(max(mark[0], box.x0), box.x1), min(max(mark[1], box.y0), box.y1))


def crosses(one: Line, two: Line) -> bool:
    """Whether two segments cross."""

    def side(a: Place, b: Place, c: Place) -> float:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    return (
        side(*one, two[0]) * side(*one, two[1]) < 0 and side(*two, one[0]) * side(*two, one[1]) < 0
    )


def passes(line: Line, box: Bbox) -> bool:
    """Whether a segment goes through a box, by points along it."""
    (x0, y0), (x1, y1) = line
    steps = 12
    return any(
        box.contains(x0 + (x1 - x0) * k / steps, y0 + (y1 - y0) * k / steps)
        for k in range(1, steps + 1)
    )


def write(axis: Axes, text: str, mark: Place, box: Bbox, unit: float) -> None:
    """The name in its box, and a thin line to its mark where that is further away."""
    end = nearest_edge(box, mark)
    inverse = axis.transData.inverted()
    if math.dist(end, mark) > (DISTANCES[0] + 2) * unit:
        (x0, y0), (x1, y1) = inverse.transform([mark, end])
        axis.plot([x0, x1], [y0, y1], color=INK, linewidth=0.4, alpha=0.6, zorder=2,
                  scalex=False, scaley=False)  # fmt: skip
    x, y = inverse.transform(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))
    axis.text(x, y, text, fontsize=SIZE, ha="center", va="center", zorder=8, color=INK)
