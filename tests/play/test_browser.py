"""The play page in Chromium, if installed: typing, keyboard control, contrast, narrow screens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from makemore.evaluation.adaptive import Reader
from makemore.evaluation.evaluate import adaptive_reader
from makemore.play.lookahead import predict
from makemore.runs.run import load
from makemore.sampling import SampleParams
from tests.play.conftest import PlayServer

pytestmark = pytest.mark.slow
FIRST, SECOND = '[aria-label="First run"]', '[aria-label="Second run"]'
MIN_CONTRAST = 4.5  # WCAG AA

CONTRASTS = """
() => {
  const parse = (colour) => [...colour.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
  const luminance = (rgb) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (part) => {
    const layers = [];
    for (let el = part; el; el = el.parentElement) layers.push(parse(getComputedStyle(el).backgroundColor));
    const base = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
    return layers.reverse().reduce((under, top) => over(top, under), base);
  };
  const results = [];
  for (const part of document.querySelectorAll("body *")) {
    const hasText = [...part.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const isInput = part.matches("textarea, input[type=number], select");
    if (!(hasText || isInput) || !part.checkVisibility()) continue;
    for (const pseudo of isInput ? [null, "::placeholder"] : [null]) {
      const back = background(part);
      const text = over(parse(getComputedStyle(part, pseudo).color), back);
      const [dark, bright] = [text, back].map(luminance).sort((a, b) => a - b);
      results.push([(bright + 0.05) / (dark + 0.05), part.outerHTML.slice(0, 90)]);
    }
  }
  return results;
}
"""


@pytest.fixture
def page(browser: Any, server: PlayServer) -> Iterator[Any]:
    """The play page, which must send no requests to other hosts and log no errors."""
    with browser.new_context() as context:
        yield from open_page(context, server)


def open_page(context: Any, server: PlayServer) -> Iterator[Any]:
    page, urls, errors = context.new_page(), [], []
    page.on("request", lambda request: urls.append(request.url))
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.address)
    wait_for_text(page, "")
    yield page
    assert {url.split("/")[2] for url in urls} == {f"127.0.0.1:{server.port}"}
    assert errors == []


def wait_for_text(page: Any, text: str, pane: str = FIRST) -> None:
    """Wait until a pane shows the predictions for a text."""
    page.wait_for_function(
        "([pane, text]) => document.querySelector(pane)?.dataset.shows === text", arg=[pane, text]
    )


def candidate_labels(page: Any, pane: str = FIRST) -> list[str]:
    return page.locator(f"{pane} .next button").evaluate_all("all => all.map((one) => one.ariaLabel)")


def shown_tokens(page: Any, pane: str = FIRST) -> str:
    return "".join(page.locator(f"{pane} .tokens button").all_text_contents())


def percent(p: float) -> str:
    """Format a probability as the page does, with two significant digits."""
    if p >= 0.0995:
        return f"{100 * p:.0f} %"
    digits = f"{100 * p:#.2g}"
    return f"{digits.rstrip('.')} %"


def test_typing_shows_the_models_predictions(page: Any, server: PlayServer) -> None:
    run = load(server.folder / "lines")
    for typed in ("b", "ba", "bad"):
        page.keyboard.type(typed[-1])
        wait_for_text(page, typed)
        expected = predict(run, typed).candidates
        names = ["the end" if c.ends else c.text for c in expected]
        labels = [label.partition("; ")[0] for label in candidate_labels(page)]
        assert labels[:8] == [f"{n}, {percent(c.p)}" for n, c in zip(names, expected, strict=True)][:8]
        assert shown_tokens(page) == typed


def test_the_adaptive_switch_shows_what_the_model_learns(page: Any, server: PlayServer) -> None:
    run, typed = load(server.folder / "text"), "mad" * 15
    page.locator(f"{FIRST} select").select_option("text")
    page.keyboard.press("Escape")
    page.keyboard.type(typed)
    wait_for_text(page, typed)

    def shown(reader: Reader | None) -> str:
        p = predict(run, typed, reader=reader).tokens[-1].p
        assert p is not None
        return percent(p)

    last = page.locator(f"{FIRST} .tokens button").last
    assert last.get_attribute("title") == shown(None)
    adaptive = shown(adaptive_reader(run))
    assert adaptive != shown(None)
    page.get_by_label("Adaptive").check()
    page.wait_for_function(
        "([pane, p]) => [...document.querySelectorAll(`${pane} .tokens button`)].at(-1).title === p",
        arg=[FIRST, adaptive],
    )
    page.get_by_role("button", name="Reset").click()
    assert not page.get_by_label("Adaptive").is_checked()


def test_two_runs_side_by_side(page: Any) -> None:
    page.keyboard.type("ba")
    wait_for_text(page, "ba")
    wait_for_text(page, "ba", SECOND)
    assert candidate_labels(page) != candidate_labels(page, SECOND)
    page.locator(f"{SECOND} select").select_option("lines")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.about')].every((one) => one.textContent.startsWith('mlp'))"
    )
    page.keyboard.press("Escape")
    page.keyboard.type("d")
    wait_for_text(page, "bad", SECOND)
    wait_for_text(page, "bad")
    assert candidate_labels(page) == candidate_labels(page, SECOND)
    page.locator(f"{SECOND} select").select_option("")
    assert not page.locator(f"{SECOND} .next").is_visible()


def tab_to(page: Any, selector: str) -> None:
    for _ in range(40):
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"the Tab key doesn't reach {selector}")


def test_page_is_usable_with_the_keyboard_alone(page: Any, server: PlayServer) -> None:
    run = load(server.folder / "lines")
    page.keyboard.type("bad")
    wait_for_text(page, "bad")
    # Show a character's alternatives and choose another.
    tab_to(page, f"{FIRST} .tokens button")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.locator(f"{FIRST} .place", has_text="Alternatives to a").wait_for()
    candidates = predict(run, "bad", at=1).candidates
    choice = next(i for i, c in enumerate(candidates[1:], start=1) if not c.ends)
    tab_to(page, f"{FIRST} .next button")
    for _ in range(choice):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    text = "b" + candidates[choice].text
    wait_for_text(page, text)
    assert page.locator("#text").input_value() == text
    # Move a slider.
    page.keyboard.press("Escape")
    tab_to(page, "#temperature")
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    page.locator("label", has_text="Temperature 0.5").wait_for()
    percentages = [percent(c.sampling_p) for c in predict(run, text, SampleParams(0.5)).candidates]
    page.wait_for_function(
        "([pane, p]) => document.querySelector(pane + ' .next button').ariaLabel.endsWith(' ' + p)",
        arg=[FIRST, percentages[0]],
    )
    # Switch runs, sample, and use one of the samples as the text.
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
    wait_for_text(page, sample)
    assert page.evaluate("document.activeElement.id") == "text"


def test_a_clicked_character_shows_its_alternatives(page: Any, server: PlayServer) -> None:
    page.keyboard.type("bad")
    wait_for_text(page, "bad")
    page.locator(f"{FIRST} .tokens button").nth(2).click()
    page.locator(f"{FIRST} .place", has_text="Alternatives to d").wait_for()
    best = predict(load(server.folder / "lines"), "ba").candidates[0]
    assert candidate_labels(page)[0].startswith(f"{'the end' if best.ends else best.text}, {percent(best.p)}")
    assert page.locator(f"{FIRST} .there").text_content() == "d"
    page.locator(f"{FIRST} .tokens button").nth(2).click()
    page.locator(f"{FIRST} .place", has_text="Next token").wait_for()


def test_multi_byte_characters_are_not_split(page: Any, server: PlayServer) -> None:
    page.locator(f"{SECOND} select").select_option("bytes")
    page.keyboard.press("Escape")
    page.keyboard.type("br")
    wait_for_text(page, "br", SECOND)
    assert predict(load(server.folder / "bytes"), "br").candidates[0].text == "\ufffd"  # half of é
    page.locator(f"{SECOND} .next button").first.click()
    assert page.locator("#text").input_value() == "br"
    page.locator("#text").fill("bré")
    wait_for_text(page, "bré", SECOND)
    page.locator(f"{SECOND} .next button").first.click()
    assert page.locator("#text").input_value() == "bréa"


def test_switching_runs_stops_sampling(page: Any) -> None:
    page.route("**/api/sample", lambda route: None)  # never answered
    page.locator(f"{FIRST} .draw").click()
    assert page.locator(f"{FIRST} .stop").is_enabled()
    page.locator(f"{FIRST} select").select_option("text")
    page.locator(f"{FIRST} .stop:disabled").wait_for(timeout=5000)


def test_same_seed_gives_the_same_samples(page: Any) -> None:
    samples = []
    for _ in range(2):
        page.locator("#seed").fill("5")
        page.keyboard.press("Control+Enter")
        page.wait_for_function("() => document.querySelectorAll('.samples[data-done]').length === 2")
        samples.append(page.locator(".samples").all_text_contents())
        page.locator(".samples").evaluate_all("all => all.forEach((one) => delete one.dataset.done)")
    assert samples[0] == samples[1]
    assert len(samples[0][1]) > 100


def test_typed_html_is_escaped(page: Any) -> None:
    page.keyboard.type("<b>a")
    wait_for_text(page, "<b>a")
    assert shown_tokens(page) == "ba"
    assert page.locator(f"{FIRST} .note").text_content().endswith("< >")
    assert page.locator(f"{FIRST} b").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_meets_wcag_aa(browser: Any, server: PlayServer, scheme: str) -> None:
    with browser.new_context(color_scheme=scheme) as context:
        for page in open_page(context, server):
            page.keyboard.type("bad cab?")
            wait_for_text(page, "bad cab?")
            wait_for_text(page, "bad cab?", SECOND)
            page.locator(f"{FIRST} .tokens button").first.click()
            page.keyboard.press("Control+Enter")
            page.wait_for_function("() => document.querySelectorAll('.samples[data-done]').length === 2")
            contrasts = page.evaluate(CONTRASTS)
            assert len(contrasts) > 60
            assert [part for ratio, part in contrasts if ratio < MIN_CONTRAST] == []


def test_phone_needs_no_horizontal_scrolling(browser: Any, server: PlayServer) -> None:
    with browser.new_context(viewport={"width": 360, "height": 740}) as context:
        for page in open_page(context, server):
            page.keyboard.type("bad" * 30)
            wait_for_text(page, "bad" * 30)
            assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_page_without_the_token_explains_what_to_open(browser: Any, server: PlayServer) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(server.address.partition("#")[0])
        page.locator("#trouble", has_text="open the address that makemore play printed").wait_for()
        assert page.locator(".pane").count() == 0
