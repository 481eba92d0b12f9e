"""Published encodings, with a small one registered in tiktoken."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiktoken import registry

from makemore.errors import UserError
from makemore.tokenizers import fit_tokenizer, tokenizer_from_dict
from makemore.tokenizers.bpe import PATTERN, train_bpe

pytestmark = pytest.mark.slow

TEXT = "the cat sat on the mat and that was that\n" * 9 + "é 漢\n"
SPECIAL = "<|endoftext|>"


@pytest.fixture
def tiny(monkeypatch):
    """An encoding called ``tiny``, with a special token and a gap in its ranks."""
    tokens = train_bpe([TEXT + SPECIAL * 9], 280)
    ranks = {token: rank + (rank > 270) for rank, token in enumerate(tokens)}
    tiktoken.list_encoding_names()
    entry = {"name": "tiny", "pat_str": PATTERN, "mergeable_ranks": ranks, "special_tokens": {SPECIAL: 271}}
    monkeypatch.setitem(registry.ENCODING_CONSTRUCTORS, "tiny", lambda: entry)
    yield tokens
    registry.ENCODINGS.pop("tiny", None)


def test_full_vocabulary(tiny):
    tokenizer = fit_tokenizer("tiktoken:tiny:full", ["x"])
    assert tokenizer.vocab_size == 281
    expected = tiktoken.get_encoding("tiny").encode_ordinary(TEXT)
    assert [rank - (rank > 270) + 1 for rank in expected] == tokenizer.encode(TEXT).tolist()
    assert tokenizer.note == ""


def test_vocabulary_is_reduced_to_tokens_that_occur(tiny):
    part = "the cat sat"
    tokenizer = fit_tokenizer("tiktoken:tiny", [part])
    full = fit_tokenizer("tiktoken:tiny:full", [part])
    assert len(tokenizer.encode(part)) == len(full.encode(part)) < len(part)
    used = np.unique(full.encode(part))
    assert tokenizer.vocab_size == 1 + 256 + (used > 256).sum()
    assert "tiny's 280 tokens occur in train" in tokenizer.note
    assert len(tokenizer.encode(TEXT)) > len(full.encode(TEXT))
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_lossless(tiny, text):
    for spec in ("tiktoken:tiny", "tiktoken:tiny:full"):
        tokenizer = fit_tokenizer(spec, ["the cat"])
        for sample in (text, text + TEXT, SPECIAL + text):
            ids = tokenizer.encode(sample)
            assert ids.dtype == tokenizer.dtype
            assert 0 not in ids
            assert tokenizer.decode(ids) == sample
            assert tokenizer.token_bytes()[ids].sum() == len(sample.encode())


def test_special_tokens_are_never_produced(tiny):
    tokenizer = fit_tokenizer("tiktoken:tiny:full", [TEXT])
    ids = tokenizer.encode(SPECIAL)
    assert len(ids) > 1
    assert tokenizer.decode(ids) == SPECIAL


def test_saved_tokenizer_needs_no_download(tiny, monkeypatch):
    tokenizer = fit_tokenizer("tiktoken:tiny", [TEXT])
    saved = json.loads(json.dumps(tokenizer.to_dict()))

    def offline(name):
        raise AssertionError("loading must not fetch the encoding")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    restored = tokenizer_from_dict(saved)
    assert restored.encode(TEXT + "zebra").tolist() == tokenizer.encode(TEXT + "zebra").tolist()
    assert restored.to_dict() == tokenizer.to_dict()


@pytest.mark.parametrize("key", ["encoding", "pattern", "ranks", "kept"])
@pytest.mark.parametrize("value", [None, 3, "", "(", "AAAA"])
def test_damaged_data_is_refused(tiny, key, value):
    saved = fit_tokenizer("tiktoken:tiny", [TEXT]).to_dict()
    if key == "encoding" or (key == "pattern" and value in ("", "AAAA")):
        return  # any name and any valid pattern is accepted
    with pytest.raises((KeyError, TypeError, ValueError)):
        tokenizer_from_dict({**saved, key: value})
    del saved[key]
    with pytest.raises(KeyError):
        tokenizer_from_dict(saved)


def test_unknown_names():
    with pytest.raises(UserError, match="did you mean 'gpt2'"):
        fit_tokenizer("tiktoken:gpt3", ["x"])
    with pytest.raises(UserError, match="unknown encoding"):
        fit_tokenizer("tiktoken:", ["x"])
    with pytest.raises(UserError, match="only :full may follow"):
        fit_tokenizer("tiktoken:gpt2:half", ["x"])


@pytest.mark.parametrize("error", [ConnectionError("no route to host"), ValueError("Hash mismatch for data")])
def test_failed_download_is_reported(monkeypatch, error):
    def fail(name):
        raise error

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(UserError, match=r"the download failed.*TIKTOKEN_CACHE_DIR"):
        fit_tokenizer("tiktoken:gpt2", ["x"])
