"""Line and scatter charts as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

from makemore.report.numbers import with_unit

WIDTH, HEIGHT = 420, 290
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 26, 40
DASHES = ("none", "7 3", "2 3", "9 3 2 3")
"""Dashes of the first, second … row of one model."""
TICKS = 5
LABEL_HEIGHT = 13.0
DISTANCE_COST = 2.0
"""Penalty for each step to a more distant label position, in units of hidden area."""
LETTER_WIDTH = 7.2
"""Approximate width of a letter of a label."""

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


class Ink(NamedTuple):
    """How a row is drawn: a model has the same colour in every chart and page, its rows differ in dashes."""

    model: str
    nth: int = 0
    """Number of earlier rows of the same model."""

    @property
    def colour(self) -> str:
        return f"var(--m-{escape(self.model, quote=True)},var(--soft))"

    @property
    def stroke(self) -> str:
        return f"stroke:{self.colour};stroke-dasharray:{DASHES[self.nth % len(DASHES)]}"


@dataclass(frozen=True)
class Axis:
    """A range of values along one edge of a chart."""

    label: str
    low: float
    high: float
    log: bool = False
    text: Callable[[float], str] = lambda value: f"{value:g}"

    def position(self, value: float) -> float:
        """Position of a value, from 0 at the low end to 1 at the high end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values within the range."""
        if self.log:
            return _log_ticks(self.low, self.high)
        return _even_ticks(self.low, self.high)


def _even_ticks(low: float, high: float) -> list[float]:
    step = _round_step((high - low) / TICKS)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _round_step(size: float) -> float:
    power = 10.0 ** math.floor(math.log10(size))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= size * 0.999)


def _log_ticks(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [10.0**e for e in exponents if low * 0.999 <= 10.0**e <= high * 1.001]
    if len(inside) >= 3:
        return inside[:: math.ceil(len(inside) / TICKS)]
    fine = [n * 10.0**e for e in exponents for n in (1, 2, 5)]
    inside = [value for value in fine if low * 0.999 <= value <= high * 1.001]
    return inside if len(inside) >= 2 else _even_ticks(low, high)


def axis(
    label: str,
    values: Sequence[float],
    log: bool = False,
    text: Callable[[float], str] = with_unit,
    most: float = math.inf,
    below: float = 0.06,
) -> Axis:
    """An axis for all values up to ``most``; ``below``: margin under the minimum, as a share of the range."""
    visible = [v for v in values if math.isfinite(v) and v <= most and (v > 0 or not log)] or [1.0]
    low, high = min(visible), max(visible)
    if log:
        margin = max((high / low) ** 0.06, 1.15)
        return Axis(label, low / margin, high * margin, True, text)
    margin = max((high - low) * 0.06, abs(high) * 0.01, 1e-6)
    return Axis(label, low - margin * below / 0.06, high + margin, False, text)


@dataclass
class Chart:
    """A chart with two axes."""

    title: str
    x: Axis
    y: Axis
    _marks: list[str] = field(default_factory=list)
    _labels: list[tuple[float, float, Ink, str]] = field(default_factory=list)

    def _to_pixels(self, point: Point) -> Point:
        x = LEFT + self.x.position(point[0]) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - self.y.position(point[1]) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(min(max(y, -HEIGHT), 2 * HEIGHT), 1)

    def _between_sides(self, points: Sequence[Point]) -> list[Point]:
        """Points between the left and right edges; the SVG clips lines at the top and bottom."""
        return [
            p
            for p in points
            if all(map(math.isfinite, p))
            and (p[0] > 0 or not self.x.log)
            and -0.001 <= self.x.position(p[0]) <= 1.001
        ]

    def _is_visible(self, point: Point) -> bool:
        return bool(self._between_sides([point])) and -0.001 <= self.y.position(point[1]) <= 1.001

    def line(self, points: Sequence[Point], ink: Ink, name: str) -> None:
        """Add a curve with a dot at its end."""
        inside = self._between_sides(points)
        if not inside:
            return
        self._path(inside, f'class="curve" style="{ink.stroke}"', name)
        self.dot(inside[-1], ink, name, radius=4)

    def dashed(self, points: Sequence[Point], name: str) -> None:
        """Add a dashed reference line."""
        self._path(self._between_sides(points), 'class="frontier"', name)

    def _path(self, points: Sequence[Point], style: str, name: str) -> None:
        path = " ".join(f"{x},{y}" for x, y in map(self._to_pixels, points))
        self._marks.append(f'<polyline {style} points="{path}"><title>{escape(name)}</title></polyline>')

    def dot(self, point: Point, ink: Ink, name: str, radius: float = 5) -> None:
        """Add a dot with a tooltip."""
        if not self._is_visible(point):
            return
        x, y = self._to_pixels(point)
        tooltip = f"{name}: {self.x.text(point[0])}, {self.y.text(point[1])}"
        self._marks.append(
            f'<circle class="ring" cx="{x}" cy="{y}" r="{radius:g}" style="fill:{ink.colour}">'
            f"<title>{escape(tooltip)}</title></circle>"
        )

    def label(self, point: Point, ink: Ink, name: str) -> None:
        """Add a name beside a dot, in its colour, placed to avoid overlaps."""
        if self._is_visible(point):
            self._labels.append((*self._to_pixels(point), ink, name))

    def svg(self) -> str:
        """Render the chart."""
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title, quote=True)}">'
            f"{self._grid()}"
            f'<svg x="{LEFT}" y="0" width="{WIDTH - LEFT}" height="{HEIGHT - BOTTOM + 6}" '
            f'viewBox="{LEFT} 0 {WIDTH - LEFT} {HEIGHT - BOTTOM + 6}">{"".join(self._marks)}</svg>'
            f"{self._label_texts()}</svg>"
        )

    def _grid(self) -> str:
        parts = []
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        for value in self.y.ticks():
            y = self._to_pixels((self.x.low, value))[1]
            parts.append(f'<path class="axis" d="M{LEFT} {y}H{right}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{self.y.text(value)}</text>')
        for value in self.x.ticks():
            x = self._to_pixels((value, self.y.low))[0]
            parts.append(f'<path class="axis" d="M{x} {bottom}v4"/>')
            parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{self.x.text(value)}</text>')
        middle = (LEFT + right) / 2
        parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
        parts.append(
            f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(self.x.label)}</text>'
            f'<text x="{LEFT - 42}" y="12">{escape(self.y.label)}</text>'
        )
        return "".join(parts)

    def _label_texts(self) -> str:
        """Place each label where it hides the least area of dots and other labels, preferably close by."""
        used = [(x - 5, y - 5, x + 5, y + 5) for x, y, *_ in self._labels]
        parts = []
        for x, y, ink, name in sorted(self._labels, key=lambda label: label[1]):
            boxes = _boxes_beside(x, y, LETTER_WIDTH * len(name))
            inside = [box for box in boxes if _inside(box)] or boxes
            rank = {box: n for n, box in enumerate(inside)}
            box = min(
                inside,
                key=lambda box: sum(_overlap(box, other) for other in used) + DISTANCE_COST * rank[box],
            )
            used.append(box)
            parts.append(
                f'<text class="name" style="fill:{ink.colour}" x="{box[0]:.1f}" '
                f'y="{box[3] - 3:.1f}">{escape(name)}</text>'
            )
        return "".join(parts)


def _boxes_beside(x: float, y: float, width: float) -> list[Box]:
    """Candidate positions of a label beside a point, best first: above the line that leads to the point."""
    lines = [y + n * LABEL_HEIGHT for n in (-0.3, 0.8, -1.3, 1.8, -2.3, 2.8, -3.3, -4.3)]
    return [
        (left, line - LABEL_HEIGHT + 3, left + width, line + 3)
        for line in lines
        for left in (x + 9, x - 9 - width)
    ]


def _inside(box: Box) -> bool:
    """Whether a label lies within the chart and above the x axis."""
    return box[0] >= 0 and box[1] >= 0 and box[2] <= WIDTH and box[3] <= HEIGHT - BOTTOM


def _overlap(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def pareto_frontier(points: Sequence[Point]) -> list[Point]:
    """The Pareto frontier as a staircase; lower is better in both coordinates."""
    corners: list[Point] = []
    best = math.inf
    for x, y in sorted(points):
        if y < best:
            if corners:
                corners.append((x, best))
            corners.append((x, y))
            best = y
    return corners
