"""Find layout faults of a matplotlib figure from its rendered bounding boxes."""

from __future__ import annotations

from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from makemore.inspection.figures import WIDTH

MIN_FONT_POINTS = 7.0


def find_faults(figure: Figure) -> list[str]:
    """Report a drawn figure's excessive width, unnamed axes, and text cut off, too small or overlapping."""
    faults = [] if figure.get_figwidth() <= WIDTH else [f"{figure.get_figwidth():.1f} inches wide"]
    visible_axes = [axes for axes in figure.axes if axes.axison]
    for dimension in ("x", "y"):
        names = [getattr(axes, f"get_{dimension}label")() for axes in visible_axes]
        if not any([*names, getattr(figure, f"get_sup{dimension}label")()]):
            faults.append(f"no {dimension} axis has a label")
    for text in _texts(figure, visible_axes):
        faults += _text_faults(figure, text)
    for axes in visible_axes:
        faults += _collisions(axes)
    return faults


def _texts(figure: Figure, visible_axes: list[Axes]) -> list[Text]:
    """All visible text, without tick labels beyond the axis limits."""
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in visible_axes:
        legend = axes.get_legend()
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts, *_tick_labels(axes, "x")]
        texts += [*_tick_labels(axes, "y"), *(legend.get_texts() if legend else [])]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def _text_faults(figure: Figure, text: Text) -> list[str]:
    box, page = text.get_window_extent(), figure.bbox
    faults = []
    if box.x0 < page.x0 - 1 or box.x1 > page.x1 + 1 or box.y0 < page.y0 - 1 or box.y1 > page.y1 + 1:
        faults.append(f"{text.get_text()!r} is cut off")
    if text.get_fontsize() < MIN_FONT_POINTS:
        faults.append(f"{text.get_text()!r} is set in {text.get_fontsize():g} points")
    return faults


def _tick_labels(axes: Axes, dimension: str) -> list[Text]:
    axis = getattr(axes, f"{dimension}axis")
    low, high = sorted(axis.get_view_interval())
    labels = [tick.label1 for tick in axis.get_major_ticks() if low - 1e-9 <= tick.get_loc() <= high + 1e-9]
    return [text for text in labels if text.get_visible() and text.get_text().strip()]


def _collisions(axes: Axes) -> list[str]:
    return [
        f"{text.get_text()!r} overlaps {neighbour.get_text()!r}"
        for dimension in ("x", "y")
        for text, neighbour in pairwise(_tick_labels(axes, dimension))
        if text.get_window_extent().padded(-1).overlaps(neighbour.get_window_extent().padded(-1))
    ]
