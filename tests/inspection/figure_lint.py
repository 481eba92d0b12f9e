"""What a reader would stumble over in a figure, found by its drawn boxes."""

from __future__ import annotations

from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from makemore.inspection.figures import WIDTH

SMALLEST = 7.0
"""Points."""


def faults(figure: Figure) -> list[str]:
    """Too wide for the page, unnamed axes, text that is cut off, tiny, or that stands on its neighbour."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    found = [] if figure.get_figwidth() <= WIDTH else [f"{figure.get_figwidth():.1f} inches wide"]
    drawn = [axes for axes in figure.axes if axes.axison]
    for which in ("x", "y"):
        names = [getattr(axes, f"get_{which}label")() for axes in drawn]
        if not any([*names, getattr(figure, f"get_sup{which}label")()]):
            found.append(f"no {which} axis is named")
    for text in _texts(figure, drawn):
        found += _of_text(figure, text)
    for axes in drawn:
        found += _collisions(axes)
    return found


def _texts(figure: Figure, drawn: list[Axes]) -> list[Text]:
    """All that is written; the labels of ticks beyond an axis's end aren't."""
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in drawn:
        legend = axes.get_legend()
        found += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts, *_ticks(axes, "x")]
        found += [*_ticks(axes, "y"), *(legend.get_texts() if legend else [])]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def _of_text(figure: Figure, text: Text) -> list[str]:
    box, page = text.get_window_extent(), figure.bbox
    found = []
    if box.x0 < page.x0 - 1 or box.x1 > page.x1 + 1 or box.y0 < page.y0 - 1 or box.y1 > page.y1 + 1:
        found.append(f"{text.get_text()!r} is cut off")
    if text.get_fontsize() < SMALLEST:
        found.append(f"{text.get_text()!r} is of {text.get_fontsize():g} points")
    return found


def _ticks(axes: Axes, which: str) -> list[Text]:
    axis = getattr(axes, f"{which}axis")
    low, high = sorted(axis.get_view_interval())
    shown = [tick.label1 for tick in axis.get_major_ticks() if low - 1e-9 <= tick.get_loc() <= high + 1e-9]
    return [text for text in shown if text.get_visible() and text.get_text().strip()]


def _collisions(axes: Axes) -> list[str]:
    return [
        f"{one.get_text()!r} stands on {other.get_text()!r}"
        for which in ("x", "y")
        for one, other in pairwise(_ticks(axes, which))
        if one.get_window_extent().padded(-1).overlaps(other.get_window_extent().padded(-1))
    ]
