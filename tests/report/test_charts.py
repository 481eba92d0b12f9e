"""How rows are drawn, and the data of charts."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest

from makemore.comparison.result import Comparison, RankedModel
from makemore.models import MODELS
from makemore.report.charts import Axis, frontier_chart, line_chart, line_styles

pytest.importorskip("altair")


@pytest.fixture
def rows(comparisons: dict[str, Comparison]) -> list[RankedModel]:
    return list(comparisons["lines"].rows)


def test_a_model_has_one_colour_and_each_of_its_rows_other_dashes_and_dots(rows):
    count, bigram = (next(row for row in rows if row.model == name) for name in ("count", "bigram"))
    first, other, second = line_styles([count, bigram, count])
    assert first.colour == second.colour != other.colour
    assert (
        len({str(ink.dashes) for ink in line_styles([count] * 4)})
        == len({i.shape for i in line_styles([count] * 4)})
        == 4
    )
    styles = line_styles([count] * 12)
    assert len({(ink.colour, ink.shape) for ink in styles}) == 12
    assert styles[4].colour == f"color-mix(in srgb, {first.colour} 60%, var(--text))"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_model_has_its_own_legible_colour(theme):
    style = files("makemore.report").joinpath("style.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--m-([a-z-]+): var\(--(c\d+)\)", style))
    assert set(colours) == set(MODELS)
    assert len(set(colours.values())) == len(colours)
    values = re.findall(r"--(card|c\d+): (#\w{6})", style)  # of the light, then of the dark theme
    half = len(values) // 2
    palette = dict(values[:half] if theme == "light" else values[half:])
    for name in colours.values():
        low, high = sorted(map(luminance, (palette[name], palette["card"])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, name  # WCAG AA
    for one, other in itertools.combinations(colours.values(), 2):
        assert math.dist(oklab(palette[one]), oklab(palette[other])) > 0.1, (one, other)


def linear_rgb(colour: str) -> list[float]:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]


def luminance(colour: str) -> float:
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear_rgb(colour), strict=True))


def oklab(colour: str) -> np.ndarray:
    """Ottosson 2020: distances between colours are about those that people see."""
    cones = np.array(
        [[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]]
    ) @ linear_rgb(colour)
    return np.array(
        [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]]
    ) @ np.cbrt(cones)


def points(chart) -> list[tuple]:
    (data,) = chart.to_dict()["datasets"].values()
    return [(point["row"], point["x"], point["y"], point["end"]) for point in data]


def test_points_that_an_axis_cannot_show_are_left_out(rows):
    curves = [[(0.0, 2.0), (1.0, float("inf")), (2.0, 1.5)], [(3.0, float("nan"))]]
    assert points(line_chart(rows[:2], curves, Axis("x"))) == [(0, 0.0, 2.0, False), (0, 2.0, 1.5, True)]
    assert points(line_chart(rows[:2], curves, Axis("x", is_log=True))) == [(0, 2.0, 1.5, True)]
    endless = replace(rows[0], result=replace(rows[0].result, bits_per_byte=float("inf")))
    assert [row for row, *_ in points(frontier_chart([endless, rows[1]], [5, 6], Axis("x")))] == [1]
    json.dumps(frontier_chart([endless], [5], Axis("x")).to_dict(), allow_nan=False)
