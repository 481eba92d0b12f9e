"""The exported web page in Chromium, if installed: greedy texts equal ours, without any request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import makemore
from makemore import Run, load
from makemore.errors import UserError
from makemore.interop.export import export
from makemore.interop.html import context_mixing
from makemore.interop.html.describe import describe_model
from makemore.interop.html.package import Package
from makemore.interop.html.page import FORMAT, page_bytes
from makemore.interop.html.program import OPERATIONS, bmm_transposed, trace
from makemore.models import MODELS
from makemore.training.mixing.mix import mix
from makemore.training.request import TrainRequest
from makemore.training.train import train
from tests.comparison.test_compare import write_prose, write_words

NEURAL = [name for name in MODELS if name not in ("count", "context-mixing", "mixture", "auto")]
TOKENS = 1000
SMALL = {"n_layer": 2, "n_embd": 32, "n_hidden": 32, "n_head": 4, "block_size": 16}


def train_small(name: str, text: Path, out: Path, tokenizer: str = "char", **settings: Any) -> Run:
    fields = MODELS.get(name).Config.model_fields
    chosen = {key: value for key, value in {**SMALL, **settings}.items() if key in fields}
    budget = {} if name in ("count", "context-mixing") else {"steps": 30, "batch_tokens": 1024}
    request = TrainRequest(
        input=str(text),
        model=name,
        tokenizer=tokenizer,
        out=out / name,
        settings=tuple(f"model.{key}={value}" for key, value in chosen.items()),
        train={**budget, "device": "cpu", "compile": "no"},
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
@pytest.mark.parametrize("name", [*NEURAL, "count", "context-mixing", "auto"])
def test_greedy_text_is_ours(name: str, open_page: Any, tmp_path: Path) -> None:
    run = train_small(name, write_prose(tmp_path / "text.txt"), tmp_path)
    text = open_page(run).evaluate(f"continuation('salt ', {TOKENS})")
    assert len(text) == TOKENS
    assert text == greedy(run, "salt ")


@pytest.mark.slow
def test_greedy_texts_of_mixtures_are_ours(open_page: Any, tmp_path: Path) -> None:
    text = write_prose(tmp_path / "text.txt")
    members = [train_small(name, text, tmp_path).folder.path for name in ("transformer", "lstm", "count")]
    for gated in (True, False):
        out = tmp_path / f"mixed-{gated}"
        mix(members, out, device="cpu", gate=gated)
        run = load(out, "cpu")
        assert open_page(run).evaluate(f"continuation('salt ', {TOKENS})") == greedy(run, "salt "), gated


@pytest.mark.slow
def test_lines_begin_with_the_boundary_and_gpt2_starts_again(open_page: Any, tmp_path: Path) -> None:
    words = write_words(tmp_path / "words.txt", n=400)
    run = train_small("transformer", words, tmp_path, style="gpt2")
    page = open_page(run)
    assert page.evaluate("continuation('', 60)").startswith(greedy(run, "", 60))
    # The line that was written ends; what follows begins a new one.
    ids = page.evaluate("opened.then(({ encode }) => encode('ab\\na'))")
    a, b = run.tokenizer.encode("ab").tolist()
    assert ids == [0, a, b, 0, a]


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_text_goes_through_the_tokenizer_and_an_empty_one_continues_the_training_text(
    tokenizer: str, open_page: Any, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("crème brûlée\nand salt, €5\n" * 300, encoding="utf-8")
    run = train_small("gru", text, tmp_path, tokenizer=tokenizer)
    page = open_page(run)
    typed = "crème\n€"
    assert page.evaluate("text => opened.then(({ encode }) => encode(text))", typed) == list(
        run.tokenizer.encode(typed)
    )
    assert page.evaluate("continuation('', 40)") == greedy(run, "", 40)
    ids = page.evaluate("[...document.querySelectorAll('#next button')].map((b) => Number(b.dataset.id))")
    assert tokenizer == "char" or not set(ids) & set(range(129, 193))  # bytes that can't begin a character
    page.fill("#text", "cr")
    for _ in range(4):
        page.locator("#next button").first.click()
    expected = "cr" + greedy(run, "cr", 12)
    written = page.input_value("#text")
    assert len(written) == 6
    assert expected.startswith(written)
    assert "\ufffd" not in written


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
    page.focus("#text")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("() => document.querySelector('#text').value.length > 200")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("() => document.querySelector('#status').textContent.includes('a second')")
    text = page.input_value("#text")
    assert text == "salt " + greedy(run, "salt ", len(text) - 5)
    page.fill("#text", "salΩt ")
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("button", name="Stop").click()
    page.wait_for_function("() => document.querySelector('#status').textContent.includes('a second')")
    assert page.text_content("#status").endswith("a second. Ignored, because the model doesn't know them: Ω")
    # Editing the middle goes on from a state that was kept, to the same predictions as a new reader.
    page.fill("#text", text[:100] + text[120:180])
    edited = page.locator("#next span").all_text_contents()
    page.get_by_role("button", name="Clear").click()
    assert page.input_value("#text") == ""
    page.fill("#text", text[:100] + text[120:180])
    assert page.locator("#next span").all_text_contents() == edited
    page.focus("#text")
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "write"


@pytest.mark.slow
def test_suggestions_are_for_the_caret_and_can_be_undone(open_page: Any, tmp_path: Path) -> None:
    run = train_small("bigram", write_prose(tmp_path / "text.txt"), tmp_path)
    page = open_page(run)
    page.focus("#text")
    page.keyboard.type("salt and")
    shares = page.locator("#next span").all_text_contents()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("old => document.querySelector('#next span').textContent !== old", arg=shares[0])
    page.keyboard.press("Tab")
    inserted = "s" + greedy(run, "s", 1) + "alt and"
    assert page.input_value("#text") == inserted
    page.keyboard.press("Control+z")
    assert page.input_value("#text") == "salt and"
    page.get_by_role("button", name="Clear").click()
    assert page.input_value("#text") == ""
    page.keyboard.press("Control+z")
    assert page.input_value("#text") == "salt and"
    page.fill("#temperature", "-1")
    page.get_by_role("button", name="Continue").click()
    assert page.evaluate("document.activeElement.id") == "temperature"
    assert page.input_value("#text") == "salt and"


@pytest.mark.slow
def test_a_long_text_is_read_at_once(open_page: Any, tmp_path: Path) -> None:
    """A model with a limited context reads only the last tokens of a pasted text."""
    run = train_small("transformer", write_prose(tmp_path / "text.txt"), tmp_path)
    page = open_page(run)
    steps = """text => opened.then((page) => {
        let steps = 0;
        const reader = new Reader(page), feed = page.model.feed;
        reader.read("salt");
        page.model.feed = function (id) { steps++; return feed.call(this, id); };
        reader.read(text);
        return [steps, argmax(reader.logits)];
    })"""
    text = "salt and sea " * 400
    n_steps, best = page.evaluate(steps, text)
    assert n_steps <= 16
    assert run.tokenizer.decode(torch.tensor([best]).numpy()) == greedy(run, text, 1)


def test_what_a_page_cannot_hold_is_refused(tmp_path: Path) -> None:
    def refused(name: str, tokenizer: str = "char", **settings: Any) -> Any:
        run = train_small(name, write_words(tmp_path / "words.txt", n=300), tmp_path, tokenizer, **settings)
        return pytest.raises(UserError), partial(export, run, "html", tmp_path / f"{name}.html")

    for case, message in [
        (refused("count", smoothing="additive"), "additive smoothing; use kneser-ney or recursive"),
        (refused("bigram", "bpe:300"), "char and byte, not bpe"),
    ]:
        with case[0] as caught:
            case[1]()
        assert message in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
@pytest.mark.parametrize("write", [write_prose, write_words])
def test_context_mixing_counts_the_text_as_training_did(
    write: Callable[..., Path], tokenizer: str, open_page: Any, tmp_path: Path
) -> None:
    text = write(tmp_path / "text.txt")
    run = train_small("context-mixing", text, tmp_path, tokenizer)
    opened = open_page(run)
    written = text.read_text("utf-8")[:60]
    ids = opened.evaluate("text => opened.then(({ encode }) => encode(text))", written)
    logits_TV = torch.tensor(
        opened.evaluate(
            "ids => opened.then(({ model: m }) => ids.map((id, i) => [...(i ? m.step(id) : m.start([id]))]))",
            ids,
        )
    )
    ours, _ = run.model(torch.tensor([ids]), run.model.init_state(1, len(ids)))
    torch.testing.assert_close(logits_TV.exp(), ours[0].exp(), atol=1e-5, rtol=1e-3)


def test_the_compiled_engine_is_that_of_the_sources() -> None:
    package = Path(makemore.__file__).parent
    sources = [
        package / "interop/html/context_mixing.c",
        package / "runtime/native/simd.h",
        *sorted((package / "models/context_mixing").glob("*.[ch]")),
    ]
    checksum = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    compiled = (package / "interop/html/context_mixing.wasm").read_bytes()
    assert f"sources {checksum}".encode() in compiled, "run make engine"


def test_a_page_says_what_its_numbers_are(tmp_path: Path) -> None:
    text = write_words(tmp_path / "words.txt", n=300)
    bigram, mlp, count = (train_small(name, text, tmp_path) for name in ("bigram", "mlp", "count"))

    def mixed(*members: Run) -> Run:
        paths = [member.folder.path for member in members]
        mix(paths, tmp_path / "mixed", device="cpu", overwrite=True)
        return load(tmp_path / "mixed", "cpu")

    for run, kinds in (
        (bigram, "parameters"),
        (count, "counts"),
        (mixed(bigram, mlp), "parameters"),
        (mixed(bigram, count), "parameters and counts"),
    ):
        page = page_bytes(run).decode()
        assert f"A language model with {run.model.n_parameters():,} {kinds}, made with" in page


def test_a_page_says_that_it_holds_the_text_and_a_long_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_small("context-mixing", write_words(tmp_path / "words.txt", n=300), tmp_path)
    result = export(run, "html", tmp_path / "page.html")
    assert "contains the training text" in result.note
    assert "It also holds the training text" in result.path.read_text("utf-8")
    monkeypatch.setattr(context_mixing, "MAX_TOKENS", 1000)
    with pytest.raises(UserError, match="of at most 1,000 tokens; train on less text"):
        export(run, "html", tmp_path / "other.html")
    assert FORMAT.note(MODELS.get("gru")(MODELS.get("gru").Config(), 4, 0)) == ""


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.add(x, x, alpha=2),
        lambda x: torch.div(x, x, rounding_mode="floor"),
        lambda x: torch.nn.functional.gelu(x),
        lambda x: 1 - x,
        lambda x: x.sum(1, dtype=torch.float64),
    ],
)
def test_arguments_that_javascript_would_ignore_are_refused(function) -> None:
    with pytest.raises(UserError, match="can't represent"):
        trace(lambda x: (function(x),), torch.randn(2, 3))


def test_a_model_that_reads_numbers_is_refused() -> None:
    with pytest.raises(UserError, match="turns tensors into numbers"):
        trace(lambda x: (x * int(x.sum()),), torch.ones(2))


def test_constants_keep_their_values() -> None:
    package = Package()
    assert package.tensor(torch.ones(3, dtype=torch.bool)) == {"type": "i4", "shape": [3], "fill": 1}
    assert package.tensor(torch.full((2,), -torch.inf))["fill"] == {"float": "-inf"}
    assert package.tensor(torch.full((40, 40), -torch.inf).triu(1))["type"] == "f4"


def test_programs_compute_what_depends_on_no_input() -> None:
    weight = torch.randn(3, 4)
    program = trace(lambda x: (x @ (weight * 2).T + torch.arange(3),), torch.randn(1, 4))
    assert [operation[0] for operation in program.operations] == ["mm", "add"]
    assert [list(constant.shape) for constant in program.constants] == [[4, 3], [3]]
    torch.testing.assert_close(program.constants[0], (weight * 2).T)
    with pytest.raises(UserError, match="can't represent the operation erfinv"):
        trace(lambda x: (torch.erfinv(x),), torch.rand(2))


def test_an_input_is_changed_in_place_only_if_nothing_reads_it_afterwards() -> None:
    def written(x: Tensor) -> Tensor:
        y = x.clone()
        y[torch.tensor([1])] = 5.0
        return y

    def names(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> list[str]:
        return [operation[0] for operation in trace(function, *inputs).operations]

    x = torch.zeros(3, 4)
    assert "index_put_in_place" in names(lambda x: (written(x),), x)
    assert "index_put_in_place" not in names(lambda x: (written(x), x.view(4, 3)), x)
    assert "index_put_in_place" not in names(lambda x: (written(x) + x,), x)
    assert "index_put_in_place" not in names(lambda x: (written(x * 2),), x)


def test_products_read_transposed_matrices_where_they_are() -> None:
    a, b = torch.randn(2, 3, 5), torch.randn(1, 2, 7, 5)

    def scores(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return (torch.bmm(a, b.permute(0, 1, 3, 2).reshape(2, 5, 7)),)

    program = trace(scores, a, b)
    assert [operation[0] for operation in program.operations] == ["bmm_transposed"]
    torch.testing.assert_close(bmm_transposed(a, b), scores(a, b)[0])
    # Other orders are moved.
    assert "permute" in str(trace(lambda a, b: (torch.bmm(a, b.permute(1, 0, 2)),), a, torch.randn(5, 2, 7)))


@pytest.mark.parametrize("name", NEURAL)
def test_every_model_is_made_of_known_operations(name: str) -> None:
    kind = MODELS.get(name)
    described = describe_model(kind(kind.Config(), 9, 0).eval(), Package())
    assert described["kind"] == "network"
    assert {operation[0] for operation in described["step"]["operations"]} <= OPERATIONS
