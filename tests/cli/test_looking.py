"""``tokenize`` and ``doctor``: what a text is like, before anything is trained."""

from __future__ import annotations

import json

import numpy as np
import pytest

from makemore.training.observers import NullObserver
from makemore.training.planning import prepare
from makemore.training.request import TrainRequest
from tests.cli.conftest import call


@pytest.mark.parametrize("spec", ["char", "byte", "bpe:270", "spm:280", "spm-unigram:280"])
@pytest.mark.parametrize("text", ["words.txt", "prose.txt"])
def test_figures_of_a_tokenizer(work, spec, text):
    result = call("tokenize", text, "-t", spec, "--json", "-n", "50")
    assert result.status == 0, result.err
    found = json.loads(result.out)
    size = len((work / text).read_bytes())
    assert found["bytes"] == found["chars"] == size
    assert found["tokens"] <= size
    assert found["bytes_per_token"] == pytest.approx(size / found["tokens"])
    assert found["tokens_per_char"] == pytest.approx(found["tokens"] / size)
    assert 1 < found["used"] <= found["vocab_size"]
    assert len(found["pieces"]) == 50
    beginning = "".join(found["pieces"])
    written = (work / text).read_text(encoding="utf-8")
    assert written.startswith(beginning) if text == "prose.txt" else set(beginning) <= set(written)


def test_tokens_are_shown_apart(work):
    (work / "one.txt").write_text("the cat.\n" * 30 + "é👩\n", encoding="utf-8")
    shown = call("tokenize", "one.txt", "-t", "byte", "--mode", "text", "-n", "9").out
    assert shown.startswith("t|h|e| |c|a|t|.⏎")
    assert "bytes/token" in shown
    assert "\\xc3" in call("tokenize", "one.txt", "-t", "byte", "--mode", "lines", "-n", "999").out


def test_what_doctor_finds(work):
    (work / "twins.txt").write_text("".join(f"n{i % 40}\n" for i in range(200)), encoding="utf-8")
    result = call("doctor", "twins.txt", "--json", "--no-compile")
    assert result.status == 0, result.err
    found = json.loads(result.out)
    assert found["text"]["encoding"] == "utf-8"
    assert found["alphabet"]["characters"] == 12
    assert found["lines"]["lines"] == 200
    assert found["lines"]["repeated"] == 160
    assert found["splits"]["mode"] == "lines"
    assert found["splits"]["val, share that stands in train"] > 0.5
    assert any("--dedupe" in line for line in found["advice"])
    assert found["a default run"]["parameters"] > 1000
    plain = call("doctor", "twins.txt", "--no-compile").out
    assert "repeated: 160" in plain
    assert "! " in plain


def test_doctor_names_the_encoding_that_fits(work):
    (work / "old.txt").write_bytes("dvě slova, café\n".encode("cp1252", "replace") * 21)
    found = json.loads(call("doctor", "old.txt", "--json", "--no-compile").out)
    assert found["text"]["encoding"] == "cp1252"
    assert any("read as cp1252" in line for line in found["advice"])
    (work / "wide.txt").write_bytes("words\n".encode("utf-16") * 20)
    found = json.loads(call("doctor", "wide.txt", "--json", "--no-compile").out)
    assert found["text"]["encoding"] == "utf-16"


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_doctor_says_what_training_chooses(work, mode):
    text = "words.txt" if mode == "lines" else "prose.txt"
    (work / "dotted.txt").write_text(
        "äöüß\n" * 50 + (work / text).read_text(encoding="utf-8"), encoding="utf-8"
    )
    for name in (text, "dotted.txt"):
        found = json.loads(call("doctor", name, "--mode", mode, "--json", "--no-compile").out)
        request = TrainRequest(name, corpus={"mode": mode}, out=work / "new")
        plan = prepare(request, NullObserver())
        said = found["a default run"]
        assert said["parameters"] == plan.model.n_parameters()
        assert said["model"] == plan.model_name


def test_doctor_says_how_much_it_counted(work, monkeypatch):
    def words():
        return json.loads(call("doctor", "prose.txt", "--json", "--no-compile").out)["words"]

    assert words()["counted in"] == "the whole text"
    assert words()["words"] == 480
    monkeypatch.setattr("makemore.corpus.text.BLOCK", 1000)
    monkeypatch.setattr("makemore.inspection.doctor.MAX_WORDS", 100)
    assert words()["counted in"] == f"its first {words()['words']:,} words"
    assert 100 <= words()["words"] < 480


def test_doctor_finds_no_encoding_for_what_is_no_text(refused, work):
    data = bytes(range(256)) * 40
    (work / "binary.txt").write_bytes(data)
    assert "looks binary" in refused("doctor", "binary.txt", "--no-compile")
    (work / "floats.txt").write_bytes(np.random.default_rng(0).normal(size=2000).tobytes() + b"\0")
    assert "looks binary" in refused("doctor", "floats.txt", "--no-compile")
    (work / "high.txt").write_bytes(b"\xff\x81\x8d" * 200)
    assert "is not utf-8" in refused("doctor", "high.txt", "--no-compile")


def test_no_text_commands_the_terminal(work):
    """Neither by an escape nor by its eight-bit form, U+009B."""
    (work / "odd.txt").write_text("\x1b[2Ja\x9b5mb :dog:\n" * 40, encoding="utf-8")
    assert call("train", "odd.txt", "--mode", "lines", "--model", "count", "--out", "odd").status == 0
    for arguments in (
        ("tokenize", "odd.txt", "--mode", "lines"),
        ("doctor", "odd.txt", "--no-compile"),
        ("sample", "odd", "--show-probs", "-n", 2),
        ("sample", "odd", "--show-probs", "-n", 2, "--prompt", "\x1b[2J"),
        ("score", "odd", "odd.txt"),
    ):
        done = call(*arguments)
        assert done.status == 0, done.err
        controls = {c for c in done.out + done.err if not c.isprintable()} - {"\n"}
        assert not controls, arguments
        if arguments[0] == "tokenize":
            assert "x1b" in done.out
            assert "\\x9b" in done.out


def test_misuse_is_refused(refused):
    assert "no such file" in refused("doctor", "none.txt")
    assert "unknown tokenizer" in refused("tokenize", "words.txt", "-t", "nothing")
    assert "bpe:512" in refused("tokenize", "words.txt", "-t", "bpe:7")
