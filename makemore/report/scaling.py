"""The charts of a scaling study: its runs, the fitted laws, and forecasts of longer training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from makemore.comparison.forecast import MAX_EXTRAPOLATION, ScalingLaw
from makemore.comparison.result import RankedModel
from makemore.report.charts import MUTED, PARAMETERS, SECONDS, Axis, axes, layered

if TYPE_CHECKING:
    import altair as alt

N_POINTS, N_TIMES = 25, 4
EVERY_ROW = -1
"""Stands for a row in marks that stay visible whichever rows are hidden."""


def forecast_chart(laws: Sequence[ScalingLaw], rows: Sequence[RankedModel]) -> alt.LayerChart:
    """Bits per byte by training time: each run, and forecasts for each law's best size."""
    data = _runs(laws, rows, lambda run: run.seconds)
    for law in laws:
        times = np.geomspace(law.seconds_K.min(), MAX_EXTRAPOLATION * law.longest, N_POINTS)
        for forecast in map(law.forecast, times):
            point = {"x": forecast.seconds, "y": forecast.bits, "low": forecast.low, "high": forecast.high}
            data.append({"row": EVERY_ROW, "run": f"{law.name}, forecast", "model": law.model, **point})
    base = _base(laws, SECONDS)
    band = base.mark_area(opacity=0.15).encode(y="low:Q", y2="high:Q").transform_filter("isValid(datum.low)")
    curve = base.mark_line(strokeDash=[5, 3]).transform_filter("isValid(datum.low)")
    return layered([band, curve, _dots(base)], data)


def size_chart(laws: Sequence[ScalingLaw], rows: Sequence[RankedModel]) -> alt.LayerChart:
    """Bits per byte by number of parameters: each run, and each law after four training times."""
    data = _runs(laws, rows, lambda run: float(run.parameters))
    for law in laws:
        sizes = np.geomspace(law.parameters_K.min(), law.parameters_K.max(), N_POINTS)
        for seconds in np.geomspace(law.seconds_K.min(), law.longest, N_TIMES):
            bits = law.law.predict(sizes, law.tokens_after(seconds, sizes))
            name = f"{law.name}, {seconds:.3g} s"
            point = {"row": EVERY_ROW, "run": name, "model": law.model, "law": name}
            data += [{**point, "x": float(x), "y": float(y)} for x, y in zip(sizes, bits, strict=True)]
            data[-1]["label"] = f"{seconds:.3g} s"
    base = _base(laws, PARAMETERS)
    curves = base.mark_line(strokeDash=[5, 3]).encode(detail="law:N").transform_filter("isValid(datum.law)")
    times = (
        base.mark_text(align="right", dy=-7).encode(text="label:N").transform_filter("isValid(datum.label)")
    )
    return layered([curves, _dots(base), times], data)


def _runs(laws: Sequence[ScalingLaw], rows: Iterable[RankedModel], x: Any) -> list[dict[str, Any]]:
    fitted = {(law.model, law.tokenizer) for law in laws}
    return [
        {"row": i, "run": row.name, "model": row.model, "x": x(run), "y": run.score.bits_per_byte}
        for i, row in enumerate(rows)
        if (row.model, row.tokenizer) in fitted
        for run in row.runs
    ]


def _base(laws: Sequence[ScalingLaw], x: Axis) -> alt.Chart:
    import altair as alt

    models = [law.model for law in laws]
    colours = alt.Scale(domain=models, range=[f"var(--m-{model},{MUTED})" for model in models])
    return axes(x).encode(
        color=alt.Color("model:N", scale=colours, legend=alt.Legend(title=None, orient="top", offset=18))
    )


def _dots(base: alt.Chart) -> alt.Chart:
    return base.mark_point(filled=True, size=50).transform_filter(f"datum.row > {EVERY_ROW}")
