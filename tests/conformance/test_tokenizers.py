"""The contract of every registered tokenizer: lossless encoding, saving and validation of saved data."""

from __future__ import annotations

import functools
import json
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from makemore.errors import UserError
from makemore.tokenizers import TOKENIZERS, Tokenizer, fit_tokenizer, tokenizer_from_dict

SPECS = {"char": "char", "byte": "byte", "bpe": "bpe:320", "spm": "spm:400", "spm-unigram": "spm-unigram:400"}
"""Spec of each registered tokenizer; tiktoken encodings need a download and are tested separately."""
TRAINING_TEXTS = [
    "emma olivia ava\tisabella  sophia\n" * 3,
    "é e\u0301 👩‍🌾 漢字 \u2028 \uffff \U0010ffff ▁ <s> <unk> <0x41>\n",
    "the quick brown fox jumps over the lazy dog; the dog sleeps on, the fox goes home\n" * 5,
]
# Lone surrogates can't be encoded.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"))


@functools.cache
def fitted(name: str) -> Tokenizer:
    return fit_tokenizer(SPECS[name], TRAINING_TEXTS)


def fit_for(name: str, text: str) -> Tokenizer:
    """A tokenizer that can encode the text: char is fitted to it, the others can encode any text."""
    return fit_tokenizer(name, [text, "x"]) if name == "char" else fitted(name)


def check_lossless(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == tokenizer.dtype
    assert (ids != tokenizer.boundary_id).all()
    assert not len(ids) or ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


def test_every_tokenizer_has_a_spec() -> None:
    assert set(SPECS) == set(TOKENIZERS) - {"tiktoken"}


@pytest.mark.parametrize("name", SPECS)
class TestContract:
    @given(text=TEXT)
    def test_encoding_is_lossless(self, name, text):
        check_lossless(fit_for(name, text), text)

    @given(lines=st.lists(LINE, min_size=1))
    def test_lines_end_with_the_boundary(self, name, lines):
        tokenizer = fit_for(name, "".join(lines))
        ids = tokenizer.encode_lines(lines)
        expected = [i for line in lines for i in [*tokenizer.encode(line).tolist(), tokenizer.boundary_id]]
        assert ids.dtype == tokenizer.dtype
        assert ids.tolist() == expected
        assert tokenizer.decode(ids) == "".join(line + "\n" for line in lines)

    def test_empty_input(self, name):
        tokenizer = fitted(name)
        assert len(tokenizer.encode_lines([])) == 0
        assert len(tokenizer.encode("")) == 0
        assert tokenizer.decode([]) == ""

    def test_a_newline_inside_a_text_is_not_the_boundary(self, name):
        tokenizer = fitted(name)
        ids = tokenizer.encode("a\nb\n\n")
        assert tokenizer.boundary_id not in ids
        assert tokenizer.decode(ids) == "a\nb\n\n"

    def test_the_boundary_decodes_to_a_newline(self, name):
        tokenizer = fitted(name)
        assert tokenizer.boundary_id == 0
        assert tokenizer.decode([0]) == "\n"
        assert tokenizer.token_bytes()[0] == 1
        assert tokenizer.token_bytes().shape == (tokenizer.vocab_size,)
        assert np.iinfo(tokenizer.dtype).max >= tokenizer.vocab_size - 1

    def test_saving_and_loading_gives_the_same_tokenizer(self, name):
        tokenizer = fitted(name)
        loaded = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
        text = "".join(TRAINING_TEXTS)
        assert loaded.vocab_size == tokenizer.vocab_size
        assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()
        assert loaded.to_dict() == tokenizer.to_dict()

    def test_fitting_is_deterministic(self, name):
        assert fit_tokenizer(SPECS[name], iter(TRAINING_TEXTS)).to_dict() == fitted(name).to_dict()

    def test_damaged_data_is_rejected(self, name):
        saved = fitted(name).to_dict()
        for key in set(saved) - {"name"}:
            for damaged in (None, 7, "", "!", [1], {k: v for k, v in saved.items() if k != key}):
                data = damaged if isinstance(damaged, dict) else {**saved, key: damaged}
                try:
                    tokenizer_from_dict(data).encode("a")
                except (KeyError, TypeError, ValueError, UserError):
                    continue
                assert key not in ("alphabet", "model", "ranks"), f"{key}={damaged} was accepted"

    @given(text=LINE)
    def test_unknown_characters_are_reported_and_removed(self, name, text):
        tokenizer = fitted(name)
        known = tokenizer.remove_unknown(text)
        unknown = tokenizer.unknown_chars(text)
        assert known == "".join(c for c in text if c not in unknown)
        assert tokenizer.decode(tokenizer.encode(known)) == known
        if unknown:
            with pytest.raises(UserError, match="not in the vocabulary"):
                tokenizer.encode(text)

    def test_python_standard_library_is_lossless(self, name):
        folder = Path(sysconfig.get_paths()["stdlib"])
        files = [*sorted(folder.glob("[a-d]*.py")), folder / "test" / "test_unicodedata.py"]
        texts = [f.read_bytes().decode("utf-8") for f in files if f.exists()]
        assert len(texts) > 20
        tokenizer = fit_tokenizer(name, texts) if name == "char" else fitted(name)
        for text in texts:
            check_lossless(tokenizer, text)

    def test_names_are_lossless(self, name, names_file):
        text = names_file.read_text(encoding="utf-8")
        check_lossless(fit_for(name, text), text)

    def test_shakespeare_is_lossless(self, name, shakespeare_file):
        text = shakespeare_file.read_text(encoding="utf-8")
        check_lossless(fit_for(name, text), text)
