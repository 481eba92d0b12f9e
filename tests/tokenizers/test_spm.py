"""SentencePiece tokenizers: lossless, also on texts that SentencePiece can't train on."""

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


def test_spaces_and_their_marker_are_distinguished(name):
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
def test_tiny_texts_give_a_smaller_vocabulary(name, text):
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
def test_invalid_sizes_are_refused(name, size):
    with pytest.raises(UserError, match=f"{name}:512"):
        fit_tokenizer(f"{name}:{size}", WORDS)


def test_spaces_absent_from_training_round_trip(name):
    tokenizer = fit_tokenizer(f"{name}:300", ["anna", "emma", "joan"] * 20)
    assert tokenizer.decode(tokenizer.encode("an em \u2581a ")) == "an em \u2581a "
