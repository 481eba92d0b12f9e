"""The beginning of a split that a score with limited time reads."""

from __future__ import annotations

import numpy as np
import pytest

from makemore.corpus.splits import encode_documents
from makemore.evaluation import parts
from makemore.evaluation.parts import affordable_part, beginning
from makemore.evaluation.scoring import check_totals
from makemore.tokenizers.byte import ByteTokenizer
from makemore.tokenizers.char import CharTokenizer

ALPHABET = CharTokenizer("abé")


def test_whole_lines_are_kept():
    lines = ["ab", "é", "xab", "bbbb"]
    split = encode_documents("val", [lines], "lines", ALPHABET, seen={"é"})
    part = beginning(split, 9, ALPHABET)  # with their ends, the lines have 3, 2, 3 and 5 tokens
    assert part.tokens_N.tolist() == split.tokens_N[:8].tolist()
    assert part.starts_D.tolist() == [0, 3, 5]
    assert part.chars_D.tolist() == [3, 2, 4]
    assert part.bytes_D.tolist() == [3, 3, 4]
    assert part.in_train_D.tolist() == [False, True, False]
    assert part.unknown_chars_D.tolist() == [0, 0, 1]
    check_totals(part, ALPHABET)


@pytest.mark.parametrize("tokenizer", [ALPHABET, ByteTokenizer()])
def test_a_long_document_is_cut(tokenizer):
    split = encode_documents("val", [["éab" * 100 + "xy" * 10]], "text", tokenizer)
    part = beginning(split, 150, tokenizer)
    assert len(part.tokens_N) == 150
    assert part.name == "val"
    check_totals(part, tokenizer)
    if tokenizer is ALPHABET:
        assert part.unknown_chars_D.tolist() == [10]  # half of the 20
        assert part.chars == 160
        assert part.bytes == 210


def test_a_short_split_stays_whole(monkeypatch):
    split = encode_documents("val", [["ab" * 50]], "text", ALPHABET)
    assert beginning(split, 100, ALPHABET) is split
    assert affordable_part(split, ALPHABET, 0.0, lambda part: pytest.fail("not timed")) is split


def test_the_part_takes_about_the_time_given(monkeypatch):
    """Scoring takes a second per 10 tokens here."""
    split = encode_documents("val", [["ab" * 500]], "text", ALPHABET)
    now = 0.0

    def score(part):
        nonlocal now
        now += len(part.tokens_N) / 10

    monkeypatch.setattr(parts.time, "perf_counter", lambda: now)
    monkeypatch.setattr(parts, "ALWAYS_SCORED", 50)
    monkeypatch.setattr(parts, "MEASURED", 20)
    sizes = [len(affordable_part(split, ALPHABET, seconds, score).tokens_N) for seconds in (1, 30, 200)]
    assert sizes == [50, 300, 1000]
    assert np.array_equal(affordable_part(split, ALPHABET, 30, score).tokens_N, split.tokens_N[:300])
