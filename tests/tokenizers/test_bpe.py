"""Byte-level BPE compared with the tokenizers library, and edge cases."""

from __future__ import annotations

import pytest
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as LibraryTokenizer

from makemore.errors import UserError
from makemore.tokenizers import fit_tokenizer, tokenizer_from_dict
from makemore.tokenizers.bpe import PATTERN, byte_decoder
from makemore.tokenizers.excerpt import excerpt

TEXT = (
    "the cat sat on the mat, the rat sat on the cat's hat; that was that\n" * 20 + "naïve café 漢字 1234567\n"
)


def test_byte_alphabet_matches_the_tokenizers_library():
    assert sorted(byte_decoder()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_decoder().values()) == list(range(256))


def test_encoding_matches_the_tokenizers_library():
    """Train and encode with the tokenizers library, which merges by pairs, not by ranks."""
    reference = LibraryTokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    reference.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=299, initial_alphabet=sorted(alphabet), show_progress=False)
    reference.train_from_iterator([TEXT], trainer)
    ours = fit_tokenizer("bpe:300", [TEXT])
    byte_offset = byte_decoder()
    for text in (TEXT, "that cat, the 12345 mats sat  on\n\n\tthe hat é 漢"):
        theirs = [bytes(byte_offset[letter] for letter in token) for token in reference.encode(text).tokens]
        assert [ours.decode_bytes([i]) for i in ours.encode(text)] == theirs


def test_more_merges_make_fewer_tokens():
    sizes = [len(fit_tokenizer(f"bpe:{n}", [TEXT]).encode(TEXT)) for n in (257, 270, 300)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == len(TEXT.encode())
    assert sizes[2] < sizes[0] / 2


def test_too_few_merges_are_noted():
    tokenizer = fit_tokenizer("bpe:5000", ["abab"])
    assert tokenizer.vocab_size < 300
    assert "not 5,000" in tokenizer.note


@pytest.mark.parametrize("option", ["", "256", "0", "-5", "1e3", "512.0", "lots", "99999999", "٣٠٠٠"])
def test_invalid_sizes_are_refused(option):
    with pytest.raises(UserError, match="give a size from 257"):
        fit_tokenizer(f"bpe:{option}", ["abc"])


def test_a_megabyte_of_one_letter():
    tokenizer = fit_tokenizer("bpe:300", ["a" * 1_000_000])
    text = "a" * 1_000_000 + " " * 100_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("ranks", ["", "!!", "YQ== YQ==", "YQ==", 7, None])
def test_damaged_ranks_are_refused(ranks):
    with pytest.raises((TypeError, ValueError)):
        tokenizer_from_dict({"name": "bpe", "ranks": ranks})


def test_excerpt_is_bounded_and_evenly_spaced():
    pieces = [chr(97 + i % 26) * 50_000 for i in range(100)]
    parts, note = excerpt(pieces, limit=600_000)
    assert sum(map(len, parts)) <= 600_000
    positions = [i for i, piece in enumerate(pieces) if piece in parts]
    assert positions[0] < 16
    assert positions[-1] > 84
    assert "every" in note
    assert excerpt(["ab", "c"]) == (["ab", "c"], "")
