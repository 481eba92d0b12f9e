"""Unusual but valid texts: line endings, byte-order marks, emoji, other scripts and encodings."""

from __future__ import annotations

import json
import random

import pytest

from tests.cli.conftest import call, train

BASE = [
    w + " " + v for w in ("salt", "bread", "plum", "rye") for v in ("on", "by", "in", "at", "of", "to")
] * 4
TEXTS = {
    "plain": "\n".join(BASE) + "\n",
    "crlf": "\r\n".join(BASE) + "\r\n",
    "cr": "\r".join(BASE),
    "byte-order mark": "\ufeff" + "\n".join(BASE) + "\n",
    "no newline at the end": "\n".join(BASE),
    "blank lines": "\n\n".join(BASE) + "\n\n\n",
    "tabs": "\n".join(line.replace(" ", "\t") for line in BASE),
    "emoji": "\n".join(line.replace("l", "👩‍🌾🌾") for line in BASE),
    "combining": "\n".join(line.replace("a", "a\u0301") for line in BASE),
    "other scripts": "\n".join(line.replace("e", "ж").replace("o", "漢") for line in BASE),
    "other separators": "\n".join(line.replace(" ", "\u2028\x0b\x85") for line in BASE),
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("mode", ["lines", "text"])
@pytest.mark.parametrize("model", ["count", "bigram"])
def test_train_eval_and_sample_accept_it(work, kind, mode, model):
    (work / "odd.txt").write_bytes(TEXTS[kind].encode())
    steps = [] if model == "count" else ["--steps", "3"]
    train("odd.txt", "--model", model, "--mode", mode, "--out", "odd", *steps)
    scored = json.loads(call("eval", "odd", "--split", "val+test", "--json").out)
    assert 0 < scored["bits_per_byte"] < 10
    samples = json.loads(call("sample", "odd", "-n", "5", "--seed", "1", "--json").out)["samples"]
    assert len(samples) == 5
    alphabet = set(TEXTS[kind].removeprefix("\ufeff").replace("\r", "\n"))
    assert set("".join(samples)) <= alphabet - ({"\n"} if mode == "lines" else set())


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_line_endings_and_byte_order_mark_do_not_change_the_score(work, mode):
    scores = []
    for kind in ("plain", "crlf", "byte-order mark"):
        (work / "odd.txt").write_bytes(TEXTS[kind].encode())
        train("odd.txt", "-m", "count", "--mode", mode, "--out", "odd", "--overwrite")
        scores.append(call("eval", "odd", "--json").out)
    assert scores[0] == scores[1] == scores[2]


def test_skipped_blank_lines_are_reported(work):
    (work / "odd.txt").write_text(TEXTS["blank lines"])
    result = train("odd.txt", "-m", "count", "--mode", "lines", "--out", "odd")
    assert f"skipped {len(BASE) + 1} blank lines" in result.err


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
def test_encoding_option(work, encoding):
    (work / "odd.txt").write_bytes(("garçon\nthé\nœuf\n" * 20).replace("œ", "oe").encode(encoding))
    train("odd.txt", "-m", "count", "--encoding", encoding, "--mode", "lines", "--out", "odd")
    samples = call("sample", "odd", "-n", "50", "--seed", "1").out
    assert "ç" in samples
    assert call("eval", "odd").status == 0


def test_block_size_is_reduced_for_a_short_text(work):
    (work / "short.txt").write_text("the cat sat on the mat, " * 4)
    result = train("short.txt", "-m", "transformer", "--steps", "2", "--out", "short")
    assert "block_size reduced from" in result.err
    assert call("sample", "short", "--seed", "1").status == 0
    assert call("eval", "short").status == 0


def test_single_line_trains_as_running_text(work):
    (work / "one.txt").write_text("just one line of text, but long enough to be cut in three parts")
    train("one.txt", "-m", "count", "--out", "one")


def test_empty_val_split_is_refused_by_eval(work):
    result = train("words.txt", "-m", "bigram", "--steps", "2", "--split", "1,0,0", "--out", "run", "--json")
    assert "train" in json.loads(result.out)
    evaluation = call("eval", "run")
    assert evaluation.status == 2
    assert "the val split of run is empty" in evaluation.err


@pytest.mark.parametrize("text", ["b", "bbbb\nbb\n", "Zürich\n", "dala"])
def test_any_text_can_be_scored(work, text):
    (work / "other.txt").write_text(text, encoding="utf-8")
    for run in ("lines", "text"):
        result = call("eval", run, "other.txt", "--json")
        scored = json.loads(result.out)
        assert scored["chars"] == len(text) + (run == "lines" and not text.endswith("\n"))
        assert scored["unspellable"] == sum(c not in (work / f"{TEXT_OF[run]}").read_text() for c in text)


TEXT_OF = {"lines": "words.txt", "text": "prose.txt"}


def test_random_characters_with_the_byte_tokenizer(work):
    rng = random.Random(0)
    lines = [
        "".join(chr(rng.choice([rng.randint(33, 126), rng.randint(0xA1, 0x2FF)])) for _ in range(9))
        for _ in range(60)
    ]
    (work / "odd.txt").write_text("\n".join(lines), encoding="utf-8")
    train("odd.txt", "-m", "count", "--mode", "lines", "--out", "odd", "--tokenizer", "byte")
    assert call("eval", "odd").status == 0
