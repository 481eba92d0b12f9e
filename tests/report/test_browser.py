"""The report and an inspection in Chromium, if installed: hover, legend, zoom, themes, phones, paper."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from makemore.comparison.result import Comparison
from makemore.report.inspection import inspect
from makemore.runs.run import load

pytestmark = pytest.mark.slow

PHONE = 380
THEMES = pytest.mark.parametrize("scheme", ["light", "dark"])
MODES = pytest.mark.parametrize("mode", ["lines", "text"])
VIOLATIONS = (
    'document.addEventListener("securitypolicyviolation", (e) => console.error(e.violatedDirective));'
)
WIDER_THAN_WINDOW = """
() => [...document.querySelectorAll("body *")].filter((part) =>
  !part.closest(".wide, .key, .picture, svg, #vg-tooltip-element") &&
  part.getBoundingClientRect().right > innerWidth + 0.5).map((part) => part.outerHTML.slice(0, 80))
"""


@pytest.fixture
def open_page(browser: Any) -> Callable:
    """Open a page that must log nothing, violate no policy and request only its own file."""

    @contextmanager
    def opened(path: Path, width: int = 1200, scheme: str = "light") -> Iterator[Any]:
        size = {"width": width, "height": 900}
        with browser.new_context(viewport=size, color_scheme=scheme) as context:
            page, urls, messages = context.new_page(), [], []
            page.on("request", lambda request: urls.append(request.url))
            page.on("console", lambda message: messages.append(message.text))
            page.on("pageerror", lambda error: messages.append(str(error)))
            page.add_init_script(VIOLATIONS)
            page.goto(path.as_uri())
            page.wait_for_function("() => !document.querySelector('.chart:not(:has(svg))')")
            yield page
            assert messages == []
            assert [url for url in urls if not url.startswith("data:")] == [path.as_uri()]

    return opened


@pytest.fixture(scope="module")
def inspection(comparisons: dict[str, Comparison], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = next(row.runs[0] for row in comparisons["lines"].rows if row.model == "bigram")
    return inspect(load(run.folder), tmp_path_factory.mktemp("inspection")).page


def chart(page: Any, title: str) -> Any:
    return page.locator("figure", has=page.get_by_role("heading", name=title)).locator("svg")


def dots(svg: Any) -> dict[str, tuple[float, ...]]:
    """Position in the chart of each visible dot, by run."""
    parts = svg.locator(".mark-symbol path").evaluate_all(
        "all => all.filter((dot) => dot.getAttribute('opacity') !== '0')"
        ".map((dot) => [dot.__data__.datum.run, dot.getAttribute('transform')])"
    )
    return {run: coordinates(place) for run, place in parts}


def coordinates(text: str) -> tuple[float, ...]:
    return tuple(round(float(number), 2) for number in re.findall(r"[-\d.]+", text))


def hide(page: Any, name: str) -> Any:
    button = page.get_by_role("group", name="Models").get_by_role("button", name=name, exact=True)
    button.click()
    return button


@MODES
def test_page_fits_a_phone(open_page, pages, mode):
    with open_page(pages[mode], PHONE) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE
        assert page.evaluate(WIDER_THAN_WINDOW) == []
        assert len(page.locator(".chart svg").all()) == 6
        for svg in page.locator(".chart svg").all():
            assert 250 < svg.bounding_box()["width"] < PHONE


@MODES
def test_no_table_is_cut_off_at_1200_pixels(open_page, pages, mode):
    with open_page(pages[mode]) as page:
        tables = page.locator(".wide").evaluate_all("all => all.map((t) => t.scrollWidth - t.clientWidth)")
        assert max(tables) <= 0


def test_columns_sort_both_ways(open_page, pages, comparisons):
    rows = comparisons["lines"].rows
    by_size = [row.name for row in sorted(rows, key=lambda row: row.runs[0].parameters)]
    by_name = sorted((row.name for row in rows), key=lambda name: name.strip("<"))
    with open_page(pages["lines"]) as page:

        def sort_by(title: str) -> tuple[list[str], str]:
            table = page.locator("table.sortable", has_text=title).first
            head = table.get_by_role("columnheader", name=title)
            head.get_by_role("button").click()
            return table.locator("tbody td:first-child").all_text_contents(), head.get_attribute("aria-sort")

        assert sort_by("parameters") == (by_size, "ascending")
        assert sort_by("parameters") == (by_size[::-1], "descending")
        assert sort_by("run")[0] == by_name
        # The mixture's peak memory is unknown, so it comes last both ways.
        assert sort_by("memory")[0][-1] == sort_by("memory")[0][-1] == "pair"


@pytest.mark.parametrize("name", ["pair", "<b>mlp & co"])
@pytest.mark.parametrize("title", ["Validation loss by time", "Quality by parameters"])
def test_hovering_shows_the_values_of_the_nearest_point(open_page, pages, comparisons, title, name):
    row = next(row for row in comparisons["lines"].rows if row.name == name)
    bits = row.result.bits_per_byte
    if "loss" in title and row.profile.curve:
        bits = row.profile.curve[-1][2]
    with open_page(pages["lines"]) as page:
        svg = chart(page, title)
        dot = svg.locator(f'.mark-symbol path[aria-label*="{name}"]').last
        dot.evaluate("dot => dot.scrollIntoView({block: 'center'})")
        x, y, width, height = dot.bounding_box().values()
        page.mouse.move(x + width / 2, y + height / 2)
        tooltip = page.locator("#vg-tooltip-element.visible")
        tooltip.wait_for()
        assert tooltip.locator("h2").text_content() == name
        assert tooltip.locator("tr", has_text="bits/byte").locator(".value").text_content() == f"{bits:.4f}"


def test_legend_hides_and_shows_models_in_every_chart(open_page, pages):
    with open_page(pages["text"]) as page:
        charts = page.locator(".chart svg").all()
        before = [dots(svg) for svg in charts]
        button = hide(page, "bigram")
        assert button.get_attribute("aria-pressed") == "false"
        assert [set(dots(svg)) for svg in charts] == [set(shown) - {"bigram"} for shown in before]
        button.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        assert [dots(svg) for svg in charts] == before


def test_charts_zoom_and_pan(open_page, pages):
    with open_page(pages["text"]) as page:
        svg = chart(page, "Quality by parameters")

        def after(action: Callable[[], None]) -> dict[str, tuple[float, ...]]:
            before = svg.inner_html()
            action()
            page.wait_for_function("([s, html]) => s.innerHTML !== html", arg=[svg.element_handle(), before])
            return dots(svg)

        def drag() -> None:
            x, y, width, height = svg.bounding_box().values()
            page.mouse.move(x + width / 2, y + height / 2)
            page.mouse.down()
            page.mouse.move(x + width / 2 - 20, y + height / 2 + 10)
            page.mouse.up()

        start = dots(svg)
        svg.hover()
        scrolled = page.evaluate("scrollY")
        page.mouse.wheel(0, 60)
        page.wait_for_function("before => scrollY > before", arg=scrolled)
        assert dots(svg) == start  # the wheel alone scrolls the page
        svg.hover()
        scrolled = page.evaluate("scrollY")
        page.keyboard.down("Control")
        zoomed = after(lambda: page.mouse.wheel(0, -200))
        page.keyboard.up("Control")
        assert page.evaluate("scrollY") == scrolled
        assert np.ptp(list(zoomed.values()), 0).min() > 1.1 * np.ptp(list(start.values()), 0).min()
        panned = after(drag)
        for name, (x, y) in panned.items():
            assert (x, y) == pytest.approx((zoomed[name][0] - 20, zoomed[name][1] + 10), abs=1)
        assert after(svg.dblclick) == start


def test_charts_survive_a_window_that_is_too_narrow(open_page, pages):
    with open_page(pages["lines"]) as page:
        svg = chart(page, "Quality by parameters")
        for width, script in ((40, "svg => svg.clientWidth === 0"), (1200, "svg => svg.clientWidth > 300")):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_function(script, arg=svg.element_handle())


def test_frontier_is_the_best_score_up_to_each_dot(open_page, pages):
    with open_page(pages["lines"]) as page:
        for title in ("Quality by parameters", "Quality by training time"):
            svg = chart(page, title)
            path = svg.locator(".mark-line path").first.get_attribute("d")
            corners = set(map(coordinates, re.findall(r"[-\d.]+,[-\d.]+", path)))
            places = dots(svg)
            for name, (x, _) in places.items():
                best = max(b for a, b in places.values() if a <= x)  # y grows downwards
                assert any((x, best) == pytest.approx(corner, abs=0.02) for corner in corners), name


def test_names_in_charts_do_not_overlap(open_page, pages):
    with open_page(pages["lines"]) as page:
        boxes = (
            chart(page, "Quality by parameters")
            .locator(".role-mark text")
            .evaluate_all(
                "all => all.filter((t) => t.getAttribute('opacity') !== '0')"
                ".map((t) => t.getBoundingClientRect().toJSON())"
            )
        )
        assert len(boxes) >= 3
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                apart = a["right"] <= b["left"] or b["right"] <= a["left"]
                assert apart or a["bottom"] <= b["top"] + 3 or b["bottom"] <= a["top"] + 3


def test_page_follows_the_theme_while_it_is_open(open_page, pages):
    def colours(page: Any) -> list[str]:
        return page.evaluate(
            """() => [getComputedStyle(document.body).backgroundColor,
            getComputedStyle(document.querySelector(".mark-line path")).stroke,
            getComputedStyle(document.querySelector(".role-axis-label text")).fill]"""
        )

    with open_page(pages["text"]) as page:
        light = colours(page)
        page.emulate_media(color_scheme="dark")
        dark = colours(page)
        page.emulate_media(media="print")
        printed = colours(page)
    assert brightness(dark[0]) < 60 < 200 < brightness(light[0])
    assert brightness(light[2]) < 120 < brightness(dark[2])
    assert light[1] != dark[1]
    assert printed == ["rgb(255, 255, 255)", *light[1:]]


def brightness(colour: str) -> float:
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


def test_paper_has_open_details_and_charts_that_fit(open_page, pages):
    with open_page(pages["text"]) as page:
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 700, "height": 900})
        assert not page.get_by_text("double-click").is_visible()
        assert page.evaluate(WIDER_THAN_WINDOW) == []
        assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
        assert page.locator("details:not([open])").count() == 0


@THEMES
def test_pictures_of_an_inspection_follow_the_theme(open_page, inspection, scheme):
    with open_page(inspection, PHONE, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE
        assert page.evaluate(WIDER_THAN_WINDOW) == []
        shown = picture(page)
        page.emulate_media(media="print")
        printed = picture(page)
    assert shown < 60 if scheme == "dark" else shown > 220
    assert printed > 220


def picture(page: Any) -> float:
    """Median brightness of the first picture."""
    return float(np.median(Image.open(io.BytesIO(page.locator(".picture").first.screenshot())).convert("L")))
