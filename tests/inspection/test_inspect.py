"""Every model gets all of its pictures."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from makemore.inspection.figures import png
from makemore.inspection.inspect import make_subject
from makemore.models import MODELS
from makemore.models.base import CountModel
from makemore.report.inspection import inspect
from makemore.runs.run import load
from makemore.training.request import TrainRequest
from makemore.training.train import train
from tests.cli.conftest import call, prose, words
from tests.inspection.figure_lint import find_faults

pytestmark = pytest.mark.slow

TRAINED = {"losses", "bigrams", "parameters", "updates"}
EMBEDDED = TRAINED | {"embeddings", "activations", "reach"}
PICTURES = {
    "count": {"bigrams", "orders"},
    "context-mixing": {"bigrams", "contexts"},
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
    "auto": {"bigrams", "members", "activations"},
}
SMALL = {
    "transformer": ("model.n_layer=2", "model.n_embd=32", "model.block_size=48"),
    **dict.fromkeys(("gru", "lstm"), ("model.n_hidden=32", "model.n_embd=16")),
}


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text(words(), encoding="utf-8")
    Path("prose.txt").write_text(prose(), encoding="utf-8")
    return tmp_path


def train_run(name: str, text: str) -> Path:
    if name == "mixture":
        members = [train_run(member, text) for member in ("count", "bigram")]
        assert call("mix", *members, "--out", "mixture").status == 0
        return Path("mixture")
    train_settings = {"eval_interval": 3} | (
        {} if issubclass(MODELS.get(name), CountModel) else {"steps": 12, "batch_tokens": 2048}
    )
    request = TrainRequest(
        input=text, model=name, out=Path(name), train=train_settings, settings=SMALL.get(name, ())
    )
    return train(request).run.folder.path


def test_every_model_has_expected_pictures() -> None:
    assert set(PICTURES) == set(MODELS)


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, "words.txt") for name in PICTURES]
    + [(name, "prose.txt") for name in ("count", "context-mixing", "lstm", "transformer")],
)
def test_inspect_draws_the_models_pictures(
    name: str, text: str, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checked_png(figure: Figure) -> bytes:
        image = png(figure)
        assert find_faults(figure) == []
        return image

    run = load(train_run(name, text))
    monkeypatch.setattr("makemore.report.inspection.png", checked_png)
    result = inspect(run)
    assert result.folder == Path(f"{name}-inspect")
    assert {path.stem for path in result.files} - {"index"} == PICTURES[name]
    for path in result.files:
        if path.suffix == ".png":
            pixels = np.asarray(Image.open(path).convert("L"))
            assert min(pixels.shape) > 150
            assert pixels.std() > 5  # not blank
    assert result.findings
    page = result.page.read_text(encoding="utf-8")
    images = re.findall(r'<img alt="[^"]+" src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(image) for image in images] == [p.read_bytes() for p in result.files[1:]]
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert "Content-Security-Policy" in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert all(finding.text.split("<")[0].split("&")[0].split("'")[0] in page for finding in result.findings)


def test_inspect_command(texts: Path) -> None:
    train_run("rnn", "words.txt")
    result = json.loads(call("inspect", "rnn", "--text", "bade", "--out", "seen", "--json").out)
    assert Path(result["page"]) == Path("seen/index.html")
    assert {finding["kind"] for finding in result["findings"]} <= {"good", "note", "warning"}
    plain = call("inspect", "rnn", "--out", "seen")
    assert plain.out.splitlines()[-1] == f"pictures: {Path('seen/index.html')}"
    assert "--unknown" in call("inspect", "rnn", "--text", "日本").err
    assert "not a directory" in call("inspect", "rnn", "--out", "words.txt").err
    assert "no run at" in call("inspect", "nowhere").err


def test_only_an_earlier_inspection_is_overwritten(texts: Path) -> None:
    for text in ("words.txt", "prose.txt"):
        train_run("count", text).rename(text[:5])
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
def test_text_file_with_a_non_unicode_name(texts: Path) -> None:
    Path("words.txt").rename("a\udcffb.txt")
    page = inspect(load(train_run("count", "a\udcffb.txt"))).page
    assert "ab (lines mode)" in page.read_text(encoding="utf-8")


def test_run_directory_given_as_a_relative_path(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(train_run("count", "words.txt"))
    assert inspect(load(".")).folder == texts / "count-inspect"
    Path("below").mkdir()
    monkeypatch.chdir("below")
    assert inspect(load("..")).folder == texts / "count-inspect"
    assert load("..").name == "count"


def test_truncation_of_a_long_text_is_reported(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_run("gru", "words.txt")
    monkeypatch.setattr("makemore.inspection.inspect.PICTURES", {})
    assert inspect(load("gru"), text="bade").left_out == ""
    assert inspect(load("gru"), text="ba" * 40).left_out == "--text after its first 31 tokens"


def test_run_without_its_text_gets_fewer_pictures(texts: Path) -> None:
    train_run("gru", "words.txt")
    Path("words.txt").unlink()
    result = inspect(load("gru"))
    assert {path.stem for path in result.files} == {"index", "losses", "embeddings", "gates"}
    assert "is missing" in result.left_out
    assert "is missing" in result.page.read_text(encoding="utf-8")


def test_replayed_updates_match_training(texts: Path) -> None:
    """Compare with the weights of runs stopped after one and two steps."""
    train_run("bigram", "words.txt")

    (update,) = make_subject(load("bigram"), None)[0].updates
    assert update.name == "W"
    assert len(update.ratio_S) == 12
    assert np.isnan(update.ratio_S[0])  # undefined: the weights start at zero
    settings = {"steps": 12, "eval_interval": 3}
    weights = []
    for steps in (1, 2):
        budget = settings | {"steps": steps, "schedule": "constant"}
        run = train(TrainRequest(input="words.txt", model="bigram", out=Path(f"to{steps}"), train=budget)).run
        weights.append(run.model.W.detach().double())
    ratio = (weights[1] - weights[0]).std(correction=0) / weights[0].std(correction=0)
    assert update.ratio_S[1] == pytest.approx(float(ratio), rel=1e-4)


def test_train_with_inspect_writes_the_page(texts: Path) -> None:
    done = call("train", "words.txt", "--model", "mlp", "--steps", 3, "--out", "mlp", "--inspect")
    assert done.status == 0, done.err
    assert done.err.splitlines()[-1].startswith("pictures: ")
    assert Path("mlp-inspect/index.html").is_file()


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_failed_inspection_keeps_the_training_output(texts: Path, options: tuple[str, ...]) -> None:
    Path("mlp-inspect").write_text("mine", encoding="utf-8")
    arguments = ("train", "words.txt", "--model", "mlp", "--steps", 3, "--out", "mlp", "--inspect")
    done = call(*arguments, *options)
    assert done.status == 2
    assert "not a directory" in done.err
    assert json.loads(done.out)["samples"] if options else len(done.out.splitlines()) == 10
