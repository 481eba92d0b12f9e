"""The char and byte tokenizers."""

from __future__ import annotations

import pytest

from makemore.errors import UserError
from makemore.tokenizers import fit_tokenizer, tokenizer_from_dict


class TestChar:
    def test_ids_are_in_code_point_order(self):
        tokenizer = fit_tokenizer("char", ["banana é👩"])
        assert tokenizer.to_dict()["alphabet"] == "".join(sorted(set("banana é👩")))
        assert tokenizer.encode("ab").tolist() == [2, 3]
        assert tokenizer.vocab_size == len(set("banana é👩")) + 1

    def test_unknown_characters_are_named(self):
        tokenizer = fit_tokenizer("char", ["abc"])
        with pytest.raises(UserError, match=r"not in the vocabulary: '\\t' 'Z' '漢'; .*--unknown skip"):
            tokenizer.encode("a漢\tZ")
        with pytest.raises(UserError, match="and 18 more"):
            tokenizer.encode("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        with pytest.raises(UserError, match="not in the vocabulary"):
            tokenizer.encode_lines(["ab", "Z"])

    @pytest.mark.parametrize("alphabet", ["", "ba", "aa", None, 3])
    def test_damaged_alphabet_is_refused(self, alphabet):
        if isinstance(alphabet, str):
            with pytest.raises(ValueError, match="alphabet"):
                tokenizer_from_dict({"name": "char", "alphabet": alphabet})
        else:
            with pytest.raises((KeyError, TypeError, ValueError)):
                tokenizer_from_dict({"name": "char"} if alphabet is None else {"alphabet": "ab"})

    def test_large_alphabets_use_uint16(self):
        text = "".join(map(chr, range(200, 900))) + "\n"
        tokenizer = fit_tokenizer("char", [text[:300], text[300:]])
        assert tokenizer.dtype == "uint16"
        assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_ids_are_writable(self):
        for text in ("abc", "aé"):
            ids = fit_tokenizer("char", [text]).encode(text)
            ids[0] = 1


class TestByte:
    def test_ids_are_bytes_plus_one(self):
        tokenizer = fit_tokenizer("byte", [""])
        assert tokenizer.encode("aé").tolist() == [b + 1 for b in "aé".encode()]
        assert tokenizer.vocab_size == 257

    def test_incomplete_character_decodes_to_the_replacement_character(self):
        assert fit_tokenizer("byte", [""]).decode([0xC3 + 1]) == "\ufffd"


def test_unknown_tokenizers():
    with pytest.raises(UserError, match="did you mean 'char'"):
        fit_tokenizer("chars", ["abc"])
    with pytest.raises(UserError, match="unknown tokenizer"):
        tokenizer_from_dict({"name": "morse"})
