"""The charts of a comparison, as Vega-Lite specifications coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from makemore.comparison.result import RankedModel

if TYPE_CHECKING:
    import altair as alt

Point = tuple[float, float]
SHADES = (100, 60, 35)
"""Percentages of a model's colour in its first rows, the next ones, and so on."""
STYLES = (([1, 0], "circle"), ([7, 3], "square"), ([2, 3], "triangle-up"), ([9, 3, 2, 3], "diamond"))
"""Dashes and dots of the first, second … row of one model."""
MUTED = "var(--soft)"
REFERENCE: dict[str, Any] = {"color": MUTED, "strokeDash": [4, 4], "strokeWidth": 1.5, "clip": True}
ZOOM = "wheel![event.ctrlKey || event.metaKey]"
"""Zoom only with Ctrl or Cmd, so that the wheel still scrolls the page."""


class LineStyle(NamedTuple):
    """How a row is drawn: a model has the same colour in every chart and page; its rows differ in dashes, and
    if there are more rows than dashes, in shade."""

    colour: str
    dashes: list[int]
    shape: str


class Axis(NamedTuple):
    """An axis: its title, and the format of its numbers (of d3-format)."""

    title: str
    format: str = "~g"
    is_log: bool = False


BITS = Axis("bits/byte")
SECONDS = Axis("seconds of training", "~g", is_log=True)
PARAMETERS = Axis("parameters", "~s", is_log=True)


def vega_embed() -> str:
    """JavaScript that defines ``vegaEmbed``, with everything it imports."""
    import vl_convert

    return vl_convert.javascript_bundle("globalThis.vegaEmbed = vegaEmbed;")


def line_styles(rows: Iterable[RankedModel]) -> list[LineStyle]:
    """How each row is drawn."""
    earlier: Counter[str] = Counter()
    result = []
    for row in rows:
        cycle, style = divmod(earlier[row.model], len(STYLES))
        colour, share = f"var(--m-{row.model},{MUTED})", SHADES[cycle % len(SHADES)]
        shaded = colour if share == 100 else f"color-mix(in srgb, {colour} {share}%, var(--text))"
        result.append(LineStyle(shaded, *STYLES[style]))
        earlier[row.model] += 1
    return result


def line_chart(
    rows: Sequence[RankedModel], curves: Iterable[Iterable[Point]], x: Axis, y: Axis = BITS
) -> alt.LayerChart:
    """A curve for each row, with a dot at its end."""
    import altair as alt

    base = _base(rows, x, y)
    dashes = _by_row(alt.StrokeDash, [style.dashes for style in line_styles(rows)])
    lines = base.mark_line(clip=True, strokeWidth=1.75).encode(strokeDash=dashes)
    return layered([lines, _dots(base, rows, size=40)], _data(rows, curves, x))


def without_start(chart: alt.LayerChart) -> alt.LayerChart:
    """Leave out points far above the ends of all visible curves: they would flatten the rest."""
    return (
        chart.transform_calculate(last="datum.end ? datum.y : null")
        .transform_joinaggregate(high="max(last)", low="min(last)")
        .transform_filter("datum.y <= datum.high + max(datum.high - datum.low, 0.15)")
    )


def with_diagonal(chart: alt.LayerChart) -> alt.LayerChart:
    """Add a dashed line from (0, 0) to (1, 1)."""
    import altair as alt

    ends = alt.InlineData([{"x": 0, "y": 0}, {"x": 1, "y": 1}])
    return chart + alt.Chart(ends).mark_line(**REFERENCE).encode(x="x:Q", y="y:Q")


def frontier_chart(rows: Sequence[RankedModel], values: Iterable[float], x: Axis) -> alt.LayerChart:
    """A dot with a name for each row, and the Pareto frontier of the values and bits/byte."""
    import altair as alt

    base = _base(rows, x, BITS)
    best = base.transform_window(best="min(y)", sort=[alt.SortField("x")])
    frontier = best.mark_line(interpolate="step-after", **REFERENCE)
    curves = [[(value, row.result.bits_per_byte)] for row, value in zip(rows, values, strict=True)]
    layers = [
        frontier.encode(y="best:Q", color=alt.value(MUTED)),
        _dots(base, rows, size=80),
        base.mark_text(limit=220).encode(text="run:N"),
    ]
    return layered(layers, _data(rows, curves, x))


def _data(rows: Sequence[RankedModel], curves: Iterable[Iterable[Point]], x: Axis) -> list[dict[str, Any]]:
    """The points of all curves that the axes can show; the last of a curve is marked as its end."""
    data = []
    for i, (row, curve) in enumerate(zip(rows, curves, strict=True)):
        points = [(a, b) for a, b in curve if math.isfinite(b) and (a > 0 or not x.is_log)]
        data += [{"row": i, "run": row.name, "x": a, "y": b, "end": False} for a, b in points]
        if points:
            data[-1]["end"] = True
    return data


def axes(x: Axis, y: Axis = BITS) -> alt.Chart:
    """A chart of the data's x and y, with a tooltip that begins with the data's run."""
    import altair as alt

    def position(channel: Any, field: str, axis: Axis) -> Any:
        kind: dict[str, Any] = {"type": "log"} if axis.is_log else {"zero": False}
        scale = alt.Scale(**kind, nice=False, padding=16)
        return channel(field, title=axis.title, scale=scale, axis=alt.Axis(format=axis.format))

    return alt.Chart().encode(
        x=position(alt.X, "x:Q", x),
        y=position(alt.Y, "y:Q", y),
        tooltip=[
            alt.Tooltip("run:N", title="title"),
            alt.Tooltip("x:Q", title=x.title, format=f".4{x.format}"),
            alt.Tooltip("y:Q", title=y.title, format=".4f"),
        ],
    )


def _base(rows: Sequence[RankedModel], x: Axis, y: Axis) -> alt.Chart:
    """The encodings that curves, dots and names share."""
    import altair as alt

    return axes(x, y).encode(color=_by_row(alt.Color, [style.colour for style in line_styles(rows)]))


def _by_row(channel: Any, values: list[Any]) -> Any:
    """Encode the row's number; the same values even if rows are hidden."""
    import altair as alt

    scale = alt.Scale(domain=list(range(len(values))), range=values)
    return channel("row:N", scale=scale, legend=None)


def _dots(base: alt.Chart, rows: Sequence[RankedModel], size: int) -> alt.Chart:
    """Dots at the ends of curves, and at the point nearest to the pointer."""
    import altair as alt

    hover = alt.selection_point(nearest=True, on="pointerover", clear="pointerout", empty=False)
    opacity = alt.when(hover).then(alt.value(1)).when("datum.end").then(alt.value(1)).otherwise(alt.value(0))
    shape = _by_row(alt.Shape, [style.shape for style in line_styles(rows)])
    return (
        base.mark_point(filled=True, size=size, clip=True)
        .encode(shape=shape, opacity=opacity)
        .add_params(hover)
    )


def layered(charts: Sequence[alt.Chart], data: list[dict[str, Any]]) -> alt.LayerChart:
    """Marks on the same axes, of the rows that aren't in the parameter ``hidden``."""
    import altair as alt

    hidden = alt.param(name="hidden", value=[])
    zoom = alt.selection_interval(bind="scales", zoom=ZOOM)
    chart: Any = alt.layer(*charts, data=alt.InlineData(data), width="container")
    return chart.transform_filter("indexof(hidden, datum.row) < 0").add_params(hidden, zoom)
