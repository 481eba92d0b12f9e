"""What each piece of a text cost, with every kind of tokenizer."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from makemore.errors import UserError
from makemore.evaluation.evaluate import evaluate, get_split
from makemore.evaluation.scoring import UNKNOWN_CHAR_NATS, token_nats
from makemore.evaluation.surprisal import surprisal, surprisal_diff
from makemore.report.surprisal import better_class, level, surprisal_diff_page, surprisal_page, visible
from makemore.runs.run import load
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
            train(TrainRequest(path, "count", tokenizer, out, corpus={"mode": mode}))
    (folder / "other.txt").write_text("naïve tea\n\ncrème € ü für\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("tokenizer", ["char", "byte", "spm"])
@pytest.mark.parametrize("mode", ["prose", "lines"])
def test_pieces_are_the_text_and_add_up_to_its_score(folder, mode, tokenizer):
    run = load(folder / f"{mode}-{tokenizer}")
    found = surprisal(run, folder / "other.txt")
    whole = "naïve tea\n\ncrème € ü für\n"
    assert "".join(found.pieces) == (whole if mode == "prose" else whole.replace("\n\n", "\n"))
    assert all(found.pieces)
    assert found.nats_P.sum() == pytest.approx(evaluate(run, folder / "other.txt").nats)
    assert found.score.nats == pytest.approx(found.nats_P.sum())
    euro = found.pieces.index("€")
    if tokenizer == "char":
        assert found.nats_P[euro] == pytest.approx(UNKNOWN_CHAR_NATS)


@pytest.mark.parametrize("name", ["prose-char", "lines-spm"])
def test_a_run_scores_a_string_as_it_scores_a_file(folder, name):
    run = load(folder / name)
    path = folder / "other.txt"
    given, read = run.score(path.read_text(encoding="utf-8")), run.score(path)
    assert given.pieces == read.pieces
    np.testing.assert_array_equal(given.nats_P, read.nats_P)
    assert given.score.nats == evaluate(run, path).nats
    with pytest.raises(UserError, match="the text has no characters"):
        run.score("")


def test_a_byte_run_s_character_costs_all_its_bytes(folder):
    run = load(folder / "prose-byte")
    found = surprisal(run, folder / "other.txt")
    nats_N = token_nats(run.model, get_split(run, folder / "other.txt", None))
    assert found.pieces[2] == "ï"
    assert found.nats_P[2] == pytest.approx(nats_N[2:4].sum())
    assert found.pieces[3] == "v"
    assert found.nats_P[3] == pytest.approx(nats_N[4])


def test_a_token_of_several_characters_is_one_piece(folder):
    found = surprisal(load(folder / "prose-spm"), folder / "prose.txt")
    assert max(map(len, found.pieces)) > 1


def test_places_are_the_file_s(folder):
    found = surprisal(load(folder / "lines-char"), folder / "other.txt")
    begin = found.text.index("€")
    assert found.place(begin, begin + 1) == "'€' at 3:7"
    prose = surprisal(load(folder / "prose-char"), folder / "other.txt")
    begin = prose.text.index("€")
    assert prose.place(begin, begin + 1) == "'€' at 3:7"


def test_two_runs_side_by_side(folder):
    first, second = (
        surprisal(load(folder / f"prose-{name}"), folder / "prose.txt") for name in ("char", "spm")
    )
    both = surprisal_diff(first, second)
    assert "".join(both.pieces) == first.text
    assert both.first_bits_P.sum() == pytest.approx(first.bits_P.sum())
    assert both.second_bits_P.sum() == pytest.approx(second.bits_P.sum())
    assert both.saved_bits_P.sum() == pytest.approx((second.score.nats - first.score.nats) / math.log(2))
    assert set(both.ends_P) <= set(first.ends_P) & set(second.ends_P)
    np.testing.assert_allclose(surprisal_diff(second, first).saved_bits_P, -both.saved_bits_P)


def test_runs_that_read_differently_do_not_meet(folder):
    first, second = (
        surprisal(load(folder / name), folder / "other.txt") for name in ("prose-char", "lines-char")
    )
    with pytest.raises(UserError, match="same mode"):
        surprisal_diff(first, second)


def test_nothing_to_score(folder):
    (folder / "euros.txt").write_text("€€€", encoding="utf-8")
    with pytest.raises(UserError, match="no characters"):
        surprisal(load(folder / "prose-char"), folder / "euros.txt")


def test_colours_follow_bits_a_character():
    assert [level(bits, "a") for bits in (0, 1, 3, 5, 9)] == [0, 1, 2, 3, 4]
    assert level(9, "abcdefghi") == 1
    assert [better_class(gain, "a") for gain in (0.1, 0.7, 3, -0.7, -3)] == ["", "a1", "a2", "b1", "b2"]
    assert visible("a\x1b[31m\n", True) == "a␛[31m↵\n"
    assert visible("\x9b31m\x7f\x85", True) == "\\x9b31m␡\\x85"


def test_pages_hold_the_text_and_nothing_from_elsewhere(folder):
    (folder / "marks.txt").write_text("<b>tea & für</b>", encoding="utf-8")
    first, second = (
        surprisal(load(folder / f"prose-{name}"), folder / "marks.txt") for name in ("char", "byte")
    )
    for page in (surprisal_page(first), surprisal_diff_page(surprisal_diff(first, second))):
        assert "<b>tea" not in page
        assert "&lt;" in page
        assert "http" not in page.replace("http-equiv", "")
        assert page.count("<span class=") >= len("tea")
