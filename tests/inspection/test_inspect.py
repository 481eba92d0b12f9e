"""Every picture is made for every rung that has it."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from makemore.inspection.inspect import DRAWERS, inspect, make_subject
from makemore.models import MODELS
from makemore.runs.run import load
from makemore.training.request import TrainRequest
from makemore.training.train import train
from tests.cli.conftest import call, prose, words
from tests.inspection.figure_lint import faults

TRAINED = {"losses", "bigrams", "parameters", "updates"}
EMBEDDED = TRAINED | {"embeddings", "activations", "reach"}
PICTURES = {
    "count": {"bigrams", "orders"},
    "bigram": TRAINED,
    "mlp": EMBEDDED,
    "bow": EMBEDDED,
    "batchnorm-mlp": EMBEDDED,
    "wavenet": EMBEDDED,
    "rnn": EMBEDDED | {"gates"},
    "gru": EMBEDDED | {"gates"},
    "lstm": EMBEDDED | {"gates"},
    "transformer": EMBEDDED | {"attention"},
    "mixture": {"bigrams", "members"},
}
SMALL = {"transformer": ("model.n_layer=2", "model.n_embd=32", "model.block_size=48")}


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text(words(), encoding="utf-8")
    Path("prose.txt").write_text(prose(), encoding="utf-8")
    return tmp_path


def made(name: str, text: str) -> Path:
    if name == "mixture":
        parts = [made(part, text) for part in ("count", "bigram")]
        assert call("mix", *parts, "--out", "mixture").status == 0
        return Path("mixture")
    budget = {"eval_interval": 3} | ({} if name == "count" else {"steps": 12})
    request = TrainRequest(text, name, out=Path(name), train=budget, settings=SMALL.get(name, ()))
    return train(request).run.folder.path


def test_no_rung_is_forgotten() -> None:
    assert set(PICTURES) == set(MODELS)


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, "words.txt") for name in PICTURES]
    + [(name, "prose.txt") for name in ("count", "mlp", "lstm", "transformer")],
)
def test_each_rung_has_its_pictures(name: str, text: str, texts: Path) -> None:
    run = load(made(name, text))
    subject, _ = make_subject(run, None)
    for picture in filter(None, (draw(subject) for draw in DRAWERS)):
        assert not faults(picture.figure), picture.name
    found = inspect(run)
    assert found.folder == Path(f"{name}-inspect")
    assert {path.stem for path in found.files} - {"index"} == PICTURES[name]
    for path in found.files:
        if path.suffix == ".png":
            pixels = np.asarray(Image.open(path).convert("L"))
            assert min(pixels.shape) > 150
            assert pixels.std() > 5  # something is drawn on it
    assert found.verdicts
    page = found.page.read_text(encoding="utf-8")
    images = re.findall(r'<img alt="[^"]+" src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(image) for image in images] == [p.read_bytes() for p in found.files[1:]]
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert "Content-Security-Policy" in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert all(verdict.text.split("<")[0].split("&")[0].split("'")[0] in page for verdict in found.verdicts)


def test_the_command(texts: Path) -> None:
    made("lstm", "words.txt")
    done = json.loads(call("inspect", "lstm", "--text", "bade", "--out", "seen", "--json").out)
    assert Path(done["page"]) == Path("seen/index.html")
    assert {verdict["kind"] for verdict in done["verdicts"]} <= {"good", "note", "warning"}
    said = call("inspect", "lstm", "--out", "seen")
    assert said.out.splitlines()[-1] == f"pictures: {Path('seen/index.html')}"
    assert "--unknown" in call("inspect", "lstm", "--text", "日本").err
    assert "not a directory" in call("inspect", "lstm", "--out", "words.txt").err
    assert "no run at" in call("inspect", "nowhere").err


def test_only_an_inspection_is_replaced(texts: Path) -> None:
    for text in ("words.txt", "prose.txt"):
        made("count", text).rename(text[:5])
    Path("docs").mkdir()
    Path("docs/index.html").write_text("<title>Mine</title>", encoding="utf-8")
    assert "not an inspection" in call("inspect", "words", "--out", "docs").err
    assert [path.name for path in Path("docs").iterdir()] == ["index.html"]
    assert "not an inspection" in call("inspect", "words", "--out", "prose").err
    Path("empty").mkdir()
    assert call("inspect", "words", "--out", "empty").status == 0
    Path("words.txt").unlink()
    Path("empty/mine.png").write_bytes(b"mine")
    assert call("inspect", "words", "--out", "empty").status == 0
    assert {path.name for path in Path("empty").iterdir()} == {"index.html", "mine.png"}


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode elsewhere")
def test_a_text_whose_name_is_not_unicode(texts: Path) -> None:
    Path("words.txt").rename("a\udcffb.txt")
    page = inspect(load(made("count", "a\udcffb.txt"))).page
    assert "a?b (lines mode)" in page.read_text(encoding="utf-8")


def test_from_within_the_run(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made("count", "words.txt"))
    assert inspect(load(".")).folder == texts / "count-inspect"
    Path("below").mkdir()
    monkeypatch.chdir("below")
    assert inspect(load("..")).folder == texts / "count-inspect"
    assert load("..").name == "count"


def test_a_text_too_long_to_show_is_said_to_be_cut(texts: Path) -> None:
    made("gru", "words.txt")
    assert inspect(load("gru"), text="bade").left_out == ""
    assert inspect(load("gru"), text="ba" * 40).left_out == "--text after its first 31 tokens"


def test_without_its_text_a_run_has_fewer_pictures(texts: Path) -> None:
    made("gru", "words.txt")
    Path("words.txt").unlink()
    found = inspect(load("gru"))
    assert {path.stem for path in found.files} == {"index", "losses", "embeddings", "gates"}
    assert "is missing" in found.left_out
    assert "is missing" in found.page.read_text(encoding="utf-8")


def test_replayed_steps_are_the_first_of_training(texts: Path) -> None:
    """Its own updates: those of a run that is stopped after each of its first steps."""
    made("bigram", "words.txt")
    from makemore.inspection.inspect import make_subject

    (update,) = make_subject(load("bigram"), None)[0].updates
    assert update.name == "W"
    assert len(update.ratio_S) == 12
    assert np.isnan(update.ratio_S[0])  # zeros have no size to hold a step against
    two = {"steps": 12, "eval_interval": 3}
    weights = []
    for steps in (1, 2):
        budget = two | {"steps": steps, "schedule": "constant"}
        run = train(TrainRequest("words.txt", "bigram", out=Path(f"to{steps}"), train=budget)).run
        weights.append(run.model.W.detach().double())
    change = (weights[1] - weights[0]).std(correction=0) / weights[0].std(correction=0)
    assert update.ratio_S[1] == pytest.approx(float(change), rel=1e-4)


def test_training_inspects_where_asked(texts: Path) -> None:
    done = call("train", "words.txt", "--model", "mlp", "--steps", 3, "--out", "mlp", "--inspect")
    assert done.status == 0, done.err
    assert done.err.splitlines()[-1].startswith("pictures: ")
    assert Path("mlp-inspect/index.html").is_file()


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_an_inspection_that_fails_hides_no_figures(texts: Path, options: tuple[str, ...]) -> None:
    Path("mlp-inspect").write_text("mine", encoding="utf-8")
    arguments = ("train", "words.txt", "--model", "mlp", "--steps", 3, "--out", "mlp", "--inspect")
    done = call(*arguments, *options)
    assert done.status == 2
    assert "not a directory" in done.err
    assert json.loads(done.out)["samples"] if options else len(done.out.splitlines()) == 10
