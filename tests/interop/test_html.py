"""The exported web page in Chromium, if installed: greedy texts equal ours, without any request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from makemore import Run, load
from makemore.errors import UserError
from makemore.interop.export import export
from makemore.interop.html.package import Package, describe_model
from makemore.interop.html.page import page_bytes
from makemore.interop.html.program import OPERATIONS, trace
from makemore.models import MODELS
from makemore.tokenizers import fit_tokenizer
from makemore.training.mixing.mix import mix
from makemore.training.request import TrainRequest
from makemore.training.train import train
from tests.comparison.test_compare import write_prose, write_words

NEURAL = [name for name in MODELS if name not in ("count", "context-mixing", "mixture", "auto")]
TOKENS = 1000
SMALL = {"n_layer": 2, "n_embd": 32, "n_hidden": 32, "n_head": 4, "block_size": 16}


def train_small(name: str, text: Path, out: Path, **settings: Any) -> Run:
    fields = MODELS.get(name).Config.model_fields
    chosen = {key: value for key, value in {**SMALL, **settings}.items() if key in fields}
    steps = {} if name == "count" else {"steps": 30}
    request = TrainRequest(
        input=str(text),
        model=name,
        out=out / name,
        settings=tuple(f"model.{key}={value}" for key, value in chosen.items()),
        train={**steps, "device": "cpu", "compile": "no"},
        overwrite=True,
    )
    return load(train(request).run.folder.path, "cpu")


@pytest.fixture
def open_page(browser: Any, tmp_path: Path):
    """Open a run's page, which must make no request and log no error."""
    pages = []

    def opened(run: Run, **options: Any) -> Any:
        path = export(run, "html", tmp_path / f"{len(pages)}.html").path
        page = browser.new_page(**options)
        page.on("request", lambda request: seen.append(request.url))
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector("#next button")
        pages.append(page)
        return page

    seen: list[str] = []
    yield opened
    assert [one for one in seen if not one.startswith(("file:", "data:"))] == []
    for page in pages:
        page.close()


def greedy(run: Run, prompt: str, tokens: int = TOKENS) -> str:
    return run.sample(prompt=prompt, n=1, temperature=0, max_new_tokens=tokens)[0].removeprefix(prompt)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NEURAL, "count"])
def test_greedy_text_is_ours(name: str, open_page: Any, tmp_path: Path) -> None:
    run = train_small(name, write_prose(tmp_path / "text.txt"), tmp_path)
    text = open_page(run).evaluate(f"continuation('salt ', {TOKENS})")
    assert len(text) == TOKENS
    assert text == greedy(run, "salt ")


@pytest.mark.slow
@pytest.mark.parametrize("gated", [True, False])
def test_greedy_text_of_a_mixture_is_ours(gated: bool, open_page: Any, tmp_path: Path) -> None:
    text = write_prose(tmp_path / "text.txt")
    members = [train_small(name, text, tmp_path).folder.path for name in ("transformer", "lstm", "count")]
    mix(members, tmp_path / "mixed", device="cpu", gate=gated)
    run = load(tmp_path / "mixed", "cpu")
    assert open_page(run).evaluate(f"continuation('salt ', {TOKENS})") == greedy(run, "salt ")


@pytest.mark.slow
def test_lines_begin_with_the_boundary_and_gpt2_recomputes_its_context(
    open_page: Any, tmp_path: Path
) -> None:
    words = write_words(tmp_path / "words.txt", n=400)
    run = train_small("transformer", words, tmp_path, style="gpt2")
    text = open_page(run).evaluate("continuation('', 60)")
    first = greedy(run, "", 60)
    assert text.startswith(first)
    bytes_run = load(
        train(
            TrainRequest(
                input=str(words), model="bigram", tokenizer="byte", out=tmp_path / "b", train={"steps": 30}
            )
        ).run.folder.path
    )
    assert open_page(bytes_run).evaluate("continuation('a', 20)").startswith(greedy(bytes_run, "a", 20))


@pytest.mark.slow
def test_the_page_is_used_by_keyboard_and_fits_a_phone(open_page: Any, tmp_path: Path) -> None:
    run = train_small("gru", write_prose(tmp_path / "text.txt"), tmp_path)
    page = open_page(run, viewport={"width": 380, "height": 800}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 27)"
    page.focus("#text")
    page.keyboard.type("salt ")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.input_value("#text") == "salt " + greedy(run, "salt ", 2)
    shares = page.locator("#next span").all_text_contents()
    assert len(shares) == 12
    assert float(shares[0].split()[0]) >= float(shares[1].split()[0]) > 0
    page.fill("#temperature", "0")
    page.keyboard.press("Control+Enter")  # in the number field: nothing
    page.focus("#text")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("document.querySelector('#text').value.length > 50")
    page.keyboard.press("Control+Enter")
    text = page.input_value("#text")
    assert text == "salt " + greedy(run, "salt ", len(text) - 5)
    page.get_by_role("button", name="Clear").click()
    assert page.input_value("#text") == ""


def test_what_a_page_cannot_hold_is_refused(tmp_path: Path) -> None:
    tokenizer = fit_tokenizer("char", ["abc"])
    mixing = MODELS.get("context-mixing")
    with pytest.raises(UserError, match="tables are too large"):
        page_bytes(mixing(mixing.Config(), 4, 0), tokenizer)
    count = MODELS.get("count")
    with pytest.raises(UserError, match="additive smoothing; use one of kneser-ney or recursive-additive"):
        page_bytes(count(count.Config(smoothing="additive"), 4, 0), tokenizer)
    bigram = MODELS.get("bigram")
    with pytest.raises(UserError, match="char and byte, not bpe"):
        page_bytes(bigram(bigram.Config(), 300, 0), fit_tokenizer("bpe:300", ["abc" * 200]))


def test_programs_compute_what_depends_on_no_input() -> None:
    weight = torch.randn(3, 4)
    program = trace(lambda x: (x @ (weight * 2).T + torch.arange(3),), torch.randn(1, 4))
    assert [operation[0] for operation in program.operations] == ["mm", "add"]
    assert [list(constant.shape) for constant in program.constants] == [[4, 3], [3]]
    torch.testing.assert_close(program.constants[0], (weight * 2).T)
    with pytest.raises(UserError, match="can't represent the operation erfinv"):
        trace(lambda x: (torch.erfinv(x),), torch.rand(2))


@pytest.mark.parametrize("name", NEURAL)
def test_every_model_is_made_of_known_operations(name: str) -> None:
    kind = MODELS.get(name)
    described = describe_model(kind(kind.Config(), 9, 0).eval(), Package())
    assert described["kind"] == "network"
    assert {operation[0] for operation in described["step"]["operations"]} <= OPERATIONS
