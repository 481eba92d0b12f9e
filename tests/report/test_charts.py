"""Chart axes, marks and the Pareto frontier."""

from __future__ import annotations

import itertools
import math
import random
import re
from importlib.resources import files
from xml.etree import ElementTree

import pytest

from makemore.models import MODELS
from makemore.report.charts import HEIGHT, WIDTH, Axis, Chart, Ink, axis, pareto_frontier


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[1.0], [0.001, 5000.0], [2.08, 2.11], [3, 300, 3e6], [1.0, 1.0]])
def test_axes_cover_their_values_and_have_ticks(values, log):
    x_axis = axis("x", values, log)
    assert all(0 < x_axis.position(v) < 1 for v in values)
    ticks = x_axis.ticks()
    assert 2 <= len(ticks) <= 12
    assert ticks == sorted(set(ticks))
    assert all(-0.01 <= x_axis.position(tick) <= 1.01 for tick in ticks)


def test_outliers_and_infinities_do_not_stretch_the_axis():
    assert axis("x", [1.0, 2.0, math.inf, math.nan, 50.0], most=10).high < 3
    assert axis("x", [0.0, 1.0, 100.0], log=True).low > 0.5


def test_frontier_holds_the_undominated_points():
    points = [(1.0, 5.0), (2.0, 6.0), (3.0, 3.0), (4.0, 3.0), (5.0, 1.0)]
    corners = [p for p in pareto_frontier(points) if p in points]
    assert corners == [(1.0, 5.0), (3.0, 3.0), (5.0, 1.0)]
    rng = random.Random(0)
    cloud = [(rng.random(), rng.random()) for _ in range(200)]
    undominated = {p for p in cloud if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in cloud)}
    assert {p for p in pareto_frontier(cloud) if p in cloud} == undominated


def test_chart_is_well_formed_and_its_marks_are_inside():
    chart = Chart("<times>", axis("x & y", [1, 100], log=True), Axis("y", 0.0, 1.0))
    chart.line([(1, 0.1), (10, 0.5), (100, 0.9), (1000, 0.5)], Ink("mlp"), "a < b")
    chart.dot((50, 2.0), Ink("gru"), "outside")
    for i in range(4):
        chart.dot((90, 0.5), Ink("mlp", i), f"model {i}")
        chart.label((90, 0.5), Ink("mlp", i), f"model {i}")
    svg = ElementTree.fromstring(chart.svg())
    assert svg.get("aria-label") == "<times>"
    circles = svg.findall(".//circle")
    assert len(circles) == 1 + 4
    for circle in circles:
        assert 0 < float(circle.get("cx")) < WIDTH
        assert 0 < float(circle.get("cy")) < HEIGHT
    names = [text for text in svg.findall(".//text") if (text.text or "").startswith("model")]
    heights = sorted(float(text.get("y")) for text in names)
    assert len(names) == 4
    assert all(b - a >= 6 for a, b in itertools.pairwise(heights))
    assert "outside" not in chart.svg()
    (path,) = svg.findall(".//polyline")
    assert len(re.findall(r"[\d.]+,[\d.]+", path.get("points"))) == 3


def test_a_model_has_one_colour_and_each_of_its_rows_other_dashes():
    assert Ink("mlp").colour == Ink("mlp", 1).colour != Ink("gru").colour
    assert len({Ink("mlp", nth).stroke for nth in range(4)}) == 4
    style = files("makemore.report").joinpath("style.css").read_text(encoding="utf-8")
    colours = re.findall(r"--m-([a-z-]+): (var\(--c\d+\))", style)
    assert {name for name, _ in colours} == set(MODELS)
    assert len({colour for _, colour in colours}) == len(list(MODELS))
