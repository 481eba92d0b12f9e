"""Every registered tokenizer keeps the contract: nothing is lost, and damage is noticed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from makemore.errors import UserError
from makemore.tokenizers import TOKENIZERS, fit_tokenizer, tokenizer_from_dict

TEXT = "emma olivia\tava é e\u0301 👩‍🌾 漢字 \u2028 \uffff \U0010ffff"
SPECS = list(TOKENIZERS)
# Lone surrogates are no text, and newlines end documents.
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"))


@pytest.mark.parametrize("spec", SPECS)
class TestContract:
    @given(text=LINE.filter(bool))
    def test_lossless_on_what_it_was_fitted_on(self, spec, text):
        tokenizer = fit_tokenizer(spec, text)
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int64
        assert (ids != tokenizer.boundary_id).all()
        assert ids.max() < tokenizer.vocab_size
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode())

    @given(lines=st.lists(LINE, min_size=1))
    def test_lines_end_in_the_boundary(self, spec, lines):
        tokenizer = fit_tokenizer(spec, "".join(lines) + "x")
        ids = tokenizer.encode_lines(lines)
        expected = [i for line in lines for i in [*tokenizer.encode(line).tolist(), tokenizer.boundary_id]]
        assert ids.tolist() == expected
        assert tokenizer.decode(ids) == "".join(line + "\n" for line in lines)

    def test_no_lines(self, spec):
        assert len(fit_tokenizer(spec, TEXT).encode_lines([])) == 0

    def test_no_text(self, spec):
        tokenizer = fit_tokenizer(spec, TEXT)
        assert len(tokenizer.encode("")) == 0
        assert tokenizer.decode([]) == ""

    def test_a_newline_within_a_text_is_no_boundary(self, spec):
        tokenizer = fit_tokenizer(spec, "a\nb")
        ids = tokenizer.encode("a\nb")
        assert len(ids) == 3
        assert tokenizer.boundary_id not in ids
        assert tokenizer.decode(ids) == "a\nb"

    def test_the_boundary_is_a_newline(self, spec):
        tokenizer = fit_tokenizer(spec, TEXT)
        assert tokenizer.boundary_id == 0
        assert tokenizer.decode([0]) == "\n"
        assert tokenizer.token_bytes()[0] == 1
        assert tokenizer.token_bytes().shape == (tokenizer.vocab_size,)

    def test_saved_and_remade(self, spec):
        tokenizer = fit_tokenizer(spec, TEXT)
        again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
        assert again.vocab_size == tokenizer.vocab_size
        assert again.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
        assert again.to_dict() == tokenizer.to_dict()

    @given(text=LINE)
    def test_what_can_be_spelled_is(self, spec, text):
        tokenizer = fit_tokenizer(spec, "abc é")
        rest = tokenizer.without_unspellable(text)
        unknown = tokenizer.unspellable(text)
        assert rest == "".join(c for c in text if c not in unknown)
        assert tokenizer.decode(tokenizer.encode(rest)) == rest
        if unknown:
            with pytest.raises(UserError, match="never saw"):
                tokenizer.encode(text)


class TestChar:
    def test_ids_are_in_code_point_order(self):
        tokenizer = fit_tokenizer("char", "banana é👩")
        assert tokenizer.to_dict()["alphabet"] == "".join(sorted(set("banana é👩")))
        assert tokenizer.encode("ab").tolist() == [2, 3]
        assert tokenizer.vocab_size == len(set("banana é👩")) + 1

    def test_unknown_characters_are_named(self):
        tokenizer = fit_tokenizer("char", "abc")
        with pytest.raises(UserError, match=r"never saw '\\t' 'Z' '漢'; .*--unknown skip"):
            tokenizer.encode("a漢\tZ")
        with pytest.raises(UserError, match="and 18 more"):
            tokenizer.encode("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        with pytest.raises(UserError, match="never saw"):
            tokenizer.encode_lines(["ab", "Z"])

    @pytest.mark.parametrize("alphabet", ["", "ba", "aa", None, 3])
    def test_damage_is_noticed(self, alphabet):
        if isinstance(alphabet, str):
            with pytest.raises(ValueError, match="alphabet"):
                tokenizer_from_dict({"name": "char", "alphabet": alphabet})
        else:
            with pytest.raises((KeyError, TypeError, ValueError)):
                tokenizer_from_dict({"name": "char"} if alphabet is None else {"alphabet": "ab"})


class TestByte:
    def test_ids_are_bytes_plus_one(self):
        tokenizer = fit_tokenizer("byte", "")
        assert tokenizer.encode("aé").tolist() == [b + 1 for b in "aé".encode()]
        assert tokenizer.vocab_size == 257

    def test_half_a_character_is_shown_as_such(self):
        assert fit_tokenizer("byte", "").decode([0xC3 + 1]) == "\ufffd"


def test_unknown_tokenizers():
    with pytest.raises(UserError, match="did you mean 'char'"):
        fit_tokenizer("chars", "abc")
    with pytest.raises(UserError, match="unknown tokenizer"):
        tokenizer_from_dict({"name": "morse"})
