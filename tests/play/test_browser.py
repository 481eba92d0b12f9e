"""The play page in a real browser, where there is one: typing, the keyboard alone, contrast, a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from makemore.play.lookahead import predict
from makemore.runs.run import load
from makemore.sampling import SampleParams
from tests.play.conftest import Served

playwright = pytest.importorskip("playwright.sync_api")
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for path in map(shutil.which, NAMES) if path), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
FIRST, SECOND = '[aria-label="First run"]', '[aria-label="Second run"]'
AA = 4.5

CONTRASTS = """
() => {
  const parse = (colour) => [...colour.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
  const light = (rgb) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (part) => {
    const layers = [];
    for (let at = part; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    const base = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
    return layers.reverse().reduce((under, top) => over(top, under), base);
  };
  const found = [];
  for (const part of document.querySelectorAll("body *")) {
    const own = [...part.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const typed = part.matches("textarea, input[type=number], select");
    if (!(own || typed) || !part.checkVisibility()) continue;
    for (const pseudo of typed ? [null, "::placeholder"] : [null]) {
      const back = ground(part);
      const ink = over(parse(getComputedStyle(part, pseudo).color), back);
      const [dark, bright] = [ink, back].map(light).sort((a, b) => a - b);
      found.push([(bright + 0.05) / (dark + 0.05), part.outerHTML.slice(0, 90)]);
    }
  }
  return found;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    """The page, which may ask nothing of other machines and report nothing amiss."""
    with browser.new_context() as context:
        yield from opened(context, served)


def opened(context: Any, served: Served) -> Iterator[Any]:
    page, asked, amiss = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: amiss.append(message.text))
    page.on("pageerror", lambda error: amiss.append(str(error)))
    page.goto(served.address)
    shown(page, "")
    yield page
    assert {url.split("/")[2] for url in asked} == {f"127.0.0.1:{served.port}"}
    assert amiss == []


def shown(page: Any, text: str, pane: str = FIRST) -> None:
    """Wait until a pane shows what comes after a text."""
    page.wait_for_function(
        "([pane, text]) => document.querySelector(pane)?.dataset.shows === text", arg=[pane, text]
    )


def nexts(page: Any, pane: str = FIRST) -> list[str]:
    return page.locator(f"{pane} .next button").evaluate_all("all => all.map((one) => one.ariaLabel)")


def tokens(page: Any, pane: str = FIRST) -> str:
    return "".join(page.locator(f"{pane} .tokens button").all_text_contents())


def percent(p: float) -> str:
    """As the page writes it: two digits that count."""
    if p >= 0.0995:
        return f"{100 * p:.0f} %"
    digits = f"{100 * p:#.2g}"
    return f"{digits.rstrip('.')} %"


def test_typing_shows_what_the_model_expects(page: Any, served: Served) -> None:
    run = load(served.folder / "lines")
    for typed in ("b", "ba", "bad"):
        page.keyboard.type(typed[-1])
        shown(page, typed)
        expected = predict(run, typed).candidates
        names = ["the end" if c.ends else c.text for c in expected]
        said = [label.partition("; ")[0] for label in nexts(page)]
        assert said[:8] == [f"{n}, {percent(c.p)}" for n, c in zip(names, expected, strict=True)][:8]
        assert tokens(page) == typed


def test_two_runs_side_by_side(page: Any) -> None:
    page.keyboard.type("ba")
    shown(page, "ba")
    shown(page, "ba", SECOND)
    assert nexts(page) != nexts(page, SECOND)
    page.locator(f"{SECOND} select").select_option("lines")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.about')].every((one) => one.textContent.startsWith('mlp'))"
    )
    page.keyboard.press("Escape")
    page.keyboard.type("d")
    shown(page, "bad", SECOND)
    shown(page, "bad")
    assert nexts(page) == nexts(page, SECOND)
    page.locator(f"{SECOND} select").select_option("")
    assert not page.locator(f"{SECOND} .next").is_visible()


def tab_to(page: Any, selector: str) -> None:
    for _ in range(40):
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"the Tab key doesn't come to {selector}")


def test_the_keyboard_alone_suffices(page: Any, served: Served) -> None:
    run = load(served.folder / "lines")
    page.keyboard.type("bad")
    shown(page, "bad")
    # A character's alternatives, and another in its place.
    tab_to(page, f"{FIRST} .tokens button")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.locator(f"{FIRST} .place", has_text="Alternatives to a").wait_for()
    inside = predict(run, "bad", at=1).candidates
    choice = next(i for i, c in enumerate(inside[1:], start=1) if not c.ends)
    tab_to(page, f"{FIRST} .next button")
    for _ in range(choice):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    text = "b" + inside[choice].text
    shown(page, text)
    assert page.locator("#text").input_value() == text
    # A slider.
    page.keyboard.press("Escape")
    tab_to(page, "#temperature")
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    page.locator("label", has_text="Temperature 0.5").wait_for()
    colder = [percent(c.drawn) for c in predict(run, text, SampleParams(0.5)).candidates]
    page.wait_for_function(
        "([pane, p]) => document.querySelector(pane + ' .next button').ariaLabel.endsWith(' ' + p)",
        arg=[FIRST, colder[0]],
    )
    # Another run, samples of it, and one of them as the text.
    tab_to(page, f"{FIRST} select")
    page.keyboard.press("ArrowDown")
    page.locator(f"{FIRST} .about", has_text="count").wait_for()
    page.keyboard.press("ArrowUp")
    page.locator(f"{FIRST} .about", has_text="mlp").wait_for()
    tab_to(page, f"{FIRST} .draw")
    page.keyboard.press("Enter")
    page.locator(f"{FIRST} .samples[data-done]").wait_for()
    assert page.locator(f"{FIRST} .samples button").count() == 10
    tab_to(page, f"{FIRST} .samples button")
    sample = page.locator(":focus").text_content()
    assert sample.startswith(text)
    page.keyboard.press("Enter")
    shown(page, sample)
    assert page.evaluate("document.activeElement.id") == "text"


def test_a_clicked_character_shows_its_alternatives(page: Any, served: Served) -> None:
    page.keyboard.type("bad")
    shown(page, "bad")
    page.locator(f"{FIRST} .tokens button").nth(2).click()
    page.locator(f"{FIRST} .place", has_text="Alternatives to d").wait_for()
    best = predict(load(served.folder / "lines"), "ba").candidates[0]
    assert nexts(page)[0].startswith(f"{'the end' if best.ends else best.text}, {percent(best.p)}")
    assert page.locator(f"{FIRST} .there").text_content() == "d"
    page.locator(f"{FIRST} .tokens button").nth(2).click()
    page.locator(f"{FIRST} .place", has_text="Next token").wait_for()


def test_characters_of_several_bytes_stay_whole(page: Any, served: Served) -> None:
    page.locator(f"{SECOND} select").select_option("bytes")
    page.keyboard.press("Escape")
    page.keyboard.type("br")
    shown(page, "br", SECOND)
    assert predict(load(served.folder / "bytes"), "br").candidates[0].text == "\ufffd"  # half of é
    page.locator(f"{SECOND} .next button").first.click()
    assert page.locator("#text").input_value() == "br"
    page.locator("#text").fill("bré")
    shown(page, "bré", SECOND)
    page.locator(f"{SECOND} .next button").first.click()
    assert page.locator("#text").input_value() == "bréa"


def test_another_run_ends_the_drawing(page: Any) -> None:
    page.route("**/api/sample", lambda route: None)  # never answered
    page.locator(f"{FIRST} .draw").click()
    assert page.locator(f"{FIRST} .stop").is_enabled()
    page.locator(f"{FIRST} select").select_option("text")
    page.locator(f"{FIRST} .stop:disabled").wait_for(timeout=5000)


def test_samples_with_a_seed_come_again(page: Any) -> None:
    drawn = []
    for _ in range(2):
        page.locator("#seed").fill("5")
        page.keyboard.press("Control+Enter")
        page.wait_for_function("() => document.querySelectorAll('.samples[data-done]').length === 2")
        drawn.append(page.locator(".samples").all_text_contents())
        page.locator(".samples").evaluate_all("all => all.forEach((one) => delete one.dataset.done)")
    assert drawn[0] == drawn[1]
    assert len(drawn[0][1]) > 100


def test_what_is_typed_stays_text(page: Any) -> None:
    page.keyboard.type("<b>a")
    shown(page, "<b>a")
    assert tokens(page) == "ba"
    assert page.locator(f"{FIRST} .note").text_content().endswith("< >")
    assert page.locator(f"{FIRST} b").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_for_aa(browser: Any, served: Served, scheme: str) -> None:
    with browser.new_context(color_scheme=scheme) as context:
        for page in opened(context, served):
            page.keyboard.type("bad cab?")
            shown(page, "bad cab?")
            shown(page, "bad cab?", SECOND)
            page.locator(f"{FIRST} .tokens button").first.click()
            page.keyboard.press("Control+Enter")
            page.wait_for_function("() => document.querySelectorAll('.samples[data-done]').length === 2")
            found = page.evaluate(CONTRASTS)
            assert len(found) > 60
            assert [part for ratio, part in found if ratio < AA] == []


def test_a_phone_shows_it_without_scrolling_sideways(browser: Any, served: Served) -> None:
    with browser.new_context(viewport={"width": 360, "height": 740}) as context:
        for page in opened(context, served):
            page.keyboard.type("bad" * 30)
            shown(page, "bad" * 30)
            assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_without_the_token_the_page_says_what_to_do(browser: Any, served: Served) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(served.address.partition("#")[0])
        page.locator("#trouble", has_text="open the address that makemore play printed").wait_for()
        assert page.locator(".pane").count() == 0
