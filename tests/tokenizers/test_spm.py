"""SentencePiece models: lossless where SentencePiece alone is not, on texts it refuses to learn from."""

from __future__ import annotations

import pytest

from makemore.errors import UserError
from makemore.tokenizers import fit_tokenizer

pytestmark = pytest.mark.parametrize("name", ["spm", "spm-unigram"])
WORDS = ["the cat sat on the mat and the other cat sat on the hat\n" * 20]


def test_frequent_words_are_single_pieces(name):
    tokenizer = fit_tokenizer(f"{name}:320", WORDS)
    assert tokenizer.vocab_size <= 320
    assert len(tokenizer.encode("the cat sat")) < 8


def test_blanks_and_their_mark_are_not_confused(name):
    tokenizer = fit_tokenizer(f"{name}:300", ["a\u2581b a b " * 30])
    text = " \u2581 \u2581\u2581  a\u2581b\t\r\n "
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("\u2581").tolist() == [1 + byte for byte in "\u2581".encode()]


def test_special_pieces_are_never_produced_from_text(name):
    tokenizer = fit_tokenizer(f"{name}:320", ["<unk> <0x41> <s> " * 100])
    for text in ("<unk>", "<0x41>", "<s></s><pad>"):
        ids = tokenizer.encode(text)
        assert 0 not in ids
        assert ord("A") + 1 not in ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["", "\n\n\n", "\x00", "\u2581\u2585", "a", "  "])
def test_texts_with_next_to_nothing_to_learn(name, text):
    tokenizer = fit_tokenizer(f"{name}:512", [text])
    assert "the text supports" in tokenizer.note
    assert tokenizer.decode(tokenizer.encode("né\n")) == "né\n"


def test_more_characters_than_pieces(name):
    text = "".join(chr(0x4E00 + i * 7 % 900) for i in range(5000)) + "aaaa bbb" * 100
    tokenizer = fit_tokenizer(f"{name}:300", [text])
    assert tokenizer.vocab_size <= 300
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("a")) == 1


@pytest.mark.parametrize("size", ["", "0", "258", "x", "-1", "512.0", "99999999"])
def test_sizes_that_cannot_be(name, size):
    with pytest.raises(UserError, match=f"{name}:512"):
        fit_tokenizer(f"{name}:{size}", WORDS)


def test_blanks_that_were_never_learned_come_back(name):
    tokenizer = fit_tokenizer(f"{name}:300", ["anna", "emma", "joan"] * 20)
    assert tokenizer.decode(tokenizer.encode("an em \u2581a ")) == "an em \u2581a "
