"""Surprisal per piece of a text, with every kind of tokenizer."""

from __future__ import annotations

import gzip
import math
import random

import numpy as np
import pytest

from makemore import load
from makemore.errors import UserError
from makemore.evaluation.evaluate import evaluate, get_split
from makemore.evaluation.scoring import UNKNOWN_CHAR_NATS, token_nats
from makemore.evaluation.surprisal import surprisal, surprisal_diff
from makemore.report.surprisal import better_class, level, surprisal_diff_page, surprisal_page, visible
from makemore.training.request import TrainRequest
from makemore.training.train import train

WORDS = ["crème", "brûlée", "naïve", "tea", "für", "🙂", "文字"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surprisal")
    rng = random.Random(1)
    text = " ".join(rng.choice(WORDS) for _ in range(3000))
    (folder / "prose.txt").write_text(text, encoding="utf-8")
    (folder / "lines.txt").write_text("\n".join(text.split(" ")) + "\n", encoding="utf-8")
    for name in ("prose", "lines"):
        for tokenizer in ("char", "byte", "spm:300"):
            out = folder / f"{name}-{tokenizer.partition(':')[0]}"
            path = str(folder / f"{name}.txt")
            mode = "text" if name == "prose" else "lines"
            train(
                TrainRequest(input=path, model="count", tokenizer=tokenizer, out=out, corpus={"mode": mode})
            )
    (folder / "other.txt").write_text("naïve tea\n\ncrème € ü für\n", encoding="utf-8")
    return folder


def test_compressed_files_and_directories_are_scored(folder, tmp_path):
    run, data = load(folder / "prose-char"), (folder / "other.txt").read_bytes()
    (tmp_path / "other.txt.gz").write_bytes(gzip.compress(data))
    expected = surprisal(run, folder / "other.txt").nats_P
    assert (surprisal(run, tmp_path / "other.txt.gz").nats_P == expected).all()
    assert (surprisal(run, tmp_path).nats_P == expected).all()


@pytest.mark.parametrize("tokenizer", ["char", "byte", "spm"])
@pytest.mark.parametrize("mode", ["prose", "lines"])
def test_pieces_spell_the_text_and_sum_to_its_score(folder, mode, tokenizer):
    run = load(folder / f"{mode}-{tokenizer}")
    result = surprisal(run, folder / "other.txt")
    text = "naïve tea\n\ncrème € ü für\n"
    assert "".join(result.pieces) == (text if mode == "prose" else text.replace("\n\n", "\n"))
    assert all(result.pieces)
    assert result.nats_P.sum() == pytest.approx(evaluate(run, folder / "other.txt").nats)
    assert result.score.nats == pytest.approx(result.nats_P.sum())
    euro = result.pieces.index("€")
    if tokenizer == "char":
        assert result.nats_P[euro] == pytest.approx(UNKNOWN_CHAR_NATS)


@pytest.mark.parametrize("name", ["prose-char", "lines-spm"])
def test_string_and_file_get_the_same_score(folder, name):
    run = load(folder / name)
    path = folder / "other.txt"
    from_text, from_file = run.score(path.read_text(encoding="utf-8")), run.score(path)
    assert from_text.pieces == from_file.pieces
    np.testing.assert_array_equal(from_text.nats_P, from_file.nats_P)
    assert from_text.score.nats == evaluate(run, path).nats
    with pytest.raises(UserError, match="the text has no characters"):
        run.score("")


def test_byte_tokenizer_sums_the_bytes_of_a_character(folder):
    run = load(folder / "prose-byte")
    result = surprisal(run, folder / "other.txt")
    nats_N = token_nats(run.model, get_split(run, folder / "other.txt", None))
    assert result.pieces[2] == "ï"
    assert result.nats_P[2] == pytest.approx(nats_N[2:4].sum())
    assert result.pieces[3] == "v"
    assert result.nats_P[3] == pytest.approx(nats_N[4])


def test_a_token_of_several_characters_is_one_piece(folder):
    result = surprisal(load(folder / "prose-spm"), folder / "prose.txt")
    assert max(map(len, result.pieces)) > 1


def test_positions_refer_to_the_file(folder):
    result = surprisal(load(folder / "lines-char"), folder / "other.txt")
    begin = result.text.index("€")
    assert result.describe(begin, begin + 1) == "'€' at 3:7"
    prose = surprisal(load(folder / "prose-char"), folder / "other.txt")
    begin = prose.text.index("€")
    assert prose.describe(begin, begin + 1) == "'€' at 3:7"


def test_diff_of_two_runs(folder):
    first, second = (
        surprisal(load(folder / f"prose-{name}"), folder / "prose.txt") for name in ("char", "spm")
    )
    diff = surprisal_diff(first, second)
    assert "".join(diff.pieces) == first.text
    assert diff.first_bits_P.sum() == pytest.approx(first.bits_P.sum())
    assert diff.second_bits_P.sum() == pytest.approx(second.bits_P.sum())
    assert diff.saved_bits_P.sum() == pytest.approx((second.score.nats - first.score.nats) / math.log(2))
    assert set(diff.ends_P) <= set(first.ends_P) & set(second.ends_P)
    np.testing.assert_allclose(surprisal_diff(second, first).saved_bits_P, -diff.saved_bits_P)


def test_diff_needs_runs_of_the_same_mode(folder):
    first, second = (
        surprisal(load(folder / name), folder / "other.txt") for name in ("prose-char", "lines-char")
    )
    with pytest.raises(UserError, match="same mode"):
        surprisal_diff(first, second)


def test_text_without_known_characters_is_refused(folder):
    (folder / "euros.txt").write_text("€€€", encoding="utf-8")
    with pytest.raises(UserError, match="no characters"):
        surprisal(load(folder / "prose-char"), folder / "euros.txt")


def test_colours_depend_on_bits_per_character():
    assert [level(bits, "a") for bits in (0, 1, 3, 5, 9)] == [0, 1, 2, 3, 4]
    assert level(9, "abcdefghi") == 1
    assert [better_class(gain, "a") for gain in (0.1, 0.7, 3, -0.7, -3)] == ["", "a1", "a2", "b1", "b2"]
    assert visible("a\x1b[31m\n", True) == "a␛[31m↵\n"
    assert visible("\x9b31m\x7f\x85", True) == "\\x9b31m␡\\x85"


def test_pages_escape_the_text_and_load_nothing(folder):
    (folder / "marks.txt").write_text("<b>tea & für</b>", encoding="utf-8")
    first, second = (
        surprisal(load(folder / f"prose-{name}"), folder / "marks.txt") for name in ("char", "byte")
    )
    for page in (surprisal_page(first), surprisal_diff_page(surprisal_diff(first, second))):
        assert "<b>tea" not in page
        assert "&lt;" in page
        assert "http" not in page.replace("http-equiv", "")
        assert page.count("<span class=") >= len("tea")
