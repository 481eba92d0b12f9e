"""``tokenize`` and ``doctor``: statistics of a text before training."""

from __future__ import annotations

import json

import numpy as np
import pytest

from makemore.training.observers import Observer
from makemore.training.planning import prepare
from makemore.training.request import TrainRequest
from tests.cli.conftest import call

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("spec", ["char", "byte", "bpe:270", "spm:280", "spm-unigram:280"])
@pytest.mark.parametrize("text", ["words.txt", "prose.txt"])
def test_tokenizer_statistics(work, spec, text):
    result = call("tokenize", text, "-t", spec, "--json", "-n", "50")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    size = len((work / text).read_bytes())
    assert report["bytes"] == report["chars"] == size
    assert report["tokens"] <= size
    assert report["bytes_per_token"] == pytest.approx(size / report["tokens"])
    assert report["tokens_per_char"] == pytest.approx(report["tokens"] / size)
    assert 1 < report["used"] <= report["vocab_size"]
    assert len(report["pieces"]) == 50
    beginning = "".join(report["pieces"])
    original = (work / text).read_text(encoding="utf-8")
    assert original.startswith(beginning) if text == "prose.txt" else set(beginning) <= set(original)


def test_tokens_are_printed_with_separators(work):
    (work / "one.txt").write_text("the cat.\n" * 30 + "é👩\n", encoding="utf-8")
    output = call("tokenize", "one.txt", "-t", "byte", "--mode", "text", "-n", "9").out
    assert output.startswith("t|h|e| |c|a|t|.⏎")
    assert "bytes/token" in output
    assert "\\xc3" in call("tokenize", "one.txt", "-t", "byte", "--mode", "lines", "-n", "999").out


def test_doctor_reports_statistics_and_advice(work):
    (work / "twins.txt").write_text("".join(f"n{i % 40}\n" for i in range(200)), encoding="utf-8")
    result = call("doctor", "twins.txt", "--json", "--no-compile")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert report["text"]["encoding"] == "utf-8"
    assert report["alphabet"]["characters"] == 12
    assert report["lines"]["lines"] == 200
    assert report["lines"]["repeated"] == 160
    assert report["splits"]["mode"] == "lines"
    assert report["splits"]["val, share also in train"] > 0.5
    assert any("--dedupe" in line for line in report["advice"])
    assert report["a default run"]["parameters"] > 1000
    plain = call("doctor", "twins.txt", "--no-compile").out
    assert "repeated: 160" in plain
    assert "! " in plain


def test_doctor_detects_the_encoding(work):
    (work / "old.txt").write_bytes("dvě slova, café\n".encode("cp1252", "replace") * 21)
    report = json.loads(call("doctor", "old.txt", "--json", "--no-compile").out)
    assert report["text"]["encoding"] == "cp1252"
    assert any("read as cp1252" in line for line in report["advice"])
    (work / "wide.txt").write_bytes("words\n".encode("utf-16") * 20)
    report = json.loads(call("doctor", "wide.txt", "--json", "--no-compile").out)
    assert report["text"]["encoding"] == "utf-16"


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_doctor_reports_the_model_that_train_builds(work, mode):
    text = "words.txt" if mode == "lines" else "prose.txt"
    (work / "dotted.txt").write_text(
        "äöüß\n" * 50 + (work / text).read_text(encoding="utf-8"), encoding="utf-8"
    )
    for name in (text, "dotted.txt"):
        report = json.loads(call("doctor", name, "--mode", mode, "--json", "--no-compile").out)
        request = TrainRequest(input=name, model="transformer", corpus={"mode": mode}, out=work / "new")
        plan = prepare(request, Observer())
        default_run = report["a default run"]
        assert default_run["parameters"] == plan.model.n_parameters()
        assert default_run["model"] == "auto, with a transformer"


def test_doctor_reports_how_many_words_it_counted(work, monkeypatch):
    def words():
        return json.loads(call("doctor", "prose.txt", "--json", "--no-compile").out)["words"]

    assert words()["counted in"] == "the whole text"
    assert words()["words"] == 480
    monkeypatch.setattr("makemore.corpus.text.BLOCK", 1000)
    monkeypatch.setattr("makemore.inspection.doctor.MAX_WORDS", 100)
    assert words()["counted in"] == f"its first {words()['words']:,} words"
    assert 100 <= words()["words"] < 480


def test_doctor_refuses_binary_files(refused, work):
    data = bytes(range(256)) * 40
    (work / "binary.txt").write_bytes(data)
    assert "looks binary" in refused("doctor", "binary.txt", "--no-compile")
    (work / "floats.txt").write_bytes(np.random.default_rng(0).normal(size=2000).tobytes() + b"\0")
    assert "looks binary" in refused("doctor", "floats.txt", "--no-compile")
    (work / "high.txt").write_bytes(b"\xff\x81\x8d" * 200)
    assert "is not utf-8" in refused("doctor", "high.txt", "--no-compile")


def test_control_characters_are_never_printed(work):
    """Both ESC and the eight-bit control sequence introducer, U+009B."""
    (work / "odd.txt").write_text("\x1b[2Ja\x9b5mb :dog:\n" * 40, encoding="utf-8")
    assert call("train", "odd.txt", "--mode", "lines", "--model", "count", "--out", "odd").status == 0
    for arguments in (
        ("tokenize", "odd.txt", "--mode", "lines"),
        ("doctor", "odd.txt", "--no-compile"),
        ("sample", "odd", "--show-probs", "-n", 2),
        ("sample", "odd", "--show-probs", "-n", 2, "--prompt", "\x1b[2J"),
        ("score", "odd", "odd.txt"),
    ):
        result = call(*arguments)
        assert result.status == 0, result.err
        controls = {c for c in result.out + result.err if not c.isprintable()} - {"\n"}
        assert not controls, arguments
        if arguments[0] == "tokenize":
            assert "x1b" in result.out
            assert "\\x9b" in result.out


def test_invalid_arguments_are_refused(refused):
    assert "no such file" in refused("doctor", "none.txt")
    assert "unknown tokenizer" in refused("tokenize", "words.txt", "-t", "nothing")
    assert "bpe:512" in refused("tokenize", "words.txt", "-t", "bpe:7")
