"""Encoded splits, and the batches cut from them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from makemore.corpus.documents import SPLITS, make_documents
from makemore.corpus.loader import Batching, OrderedLoader, ShuffledLoader
from makemore.corpus.splits import encode_documents, make_corpus
from makemore.corpus.text import Text
from makemore.settings import CorpusConfig
from makemore.tokenizers import fit_tokenizer
from makemore.types import IGNORE_INDEX

rng = random.Random(1)
LINES = "\n".join("".join(rng.choice("abcdé👩") for _ in range(rng.randint(1, 9))) for _ in range(120))
TEXT = LINES.replace("\n", " \n")


def text_of(mode: str) -> Text:
    return Text.of({"lines": LINES, "text": TEXT}[mode])


def documents_of(mode: str) -> dict[str, list[str]]:
    documents = make_documents(text_of(mode), CorpusConfig(mode=mode))
    return {name: documents.all(name) for name in SPLITS}


def build_corpus(mode: str, tokenizer: str):
    return make_corpus(text_of(mode), CorpusConfig(mode=mode), tokenizer)


@pytest.mark.parametrize("mode", ["lines", "text"])
@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe:270", "spm:300"])
def test_split_tokens_decode_to_its_documents(mode, tokenizer):
    corpus = build_corpus(mode, tokenizer)
    for name, split in corpus.splits.items():
        documents = documents_of(mode)[name]
        end = "\n" if mode == "lines" else ""
        assert len(split.starts_D) == len(documents)
        for document, start, stop, chars, size in zip(
            documents, split.starts_D, split.ends_D, split.chars_D, split.bytes_D, strict=True
        ):
            assert corpus.tokenizer.decode(split.tokens_N[start:stop]) == document + end
            assert chars == len(document + end)
            assert size == len((document + end).encode())
        assert corpus.tokenizer.token_bytes()[split.tokens_N].sum() == split.bytes


def test_lines_seen_in_train_are_marked():
    corpus, parts = build_corpus("lines", "char"), documents_of("lines")
    train = set(parts["train"])
    assert corpus.splits["train"].in_train_D is None
    assert corpus.splits["val"].in_train_D.tolist() == [d in train for d in parts["val"]]
    assert corpus.split("val+test").in_train_D.tolist() == [d in train for d in parts["val"] + parts["test"]]
    assert build_corpus("text", "char").splits["val"].in_train_D is None


def test_joined_splits():
    lines, text = build_corpus("lines", "char"), build_corpus("text", "char")
    both = lines.split("val+test").tokens_N
    assert both.tolist() == [*lines.splits["val"].tokens_N, *lines.splits["test"].tokens_N]
    joined = text.split("val+test")
    assert len(joined.starts_D) == 1
    assert text.tokenizer.decode(joined.tokens_N) == TEXT[int(len(TEXT) * 0.9) :]


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_unknown_characters_are_dropped_and_counted(mode):
    tokenizer = fit_tokenizer("char", "abc")
    split = encode_documents("x", [["aZb", "ÿ"], ["c"]], mode, tokenizer)
    assert split.unknown_chars_D.tolist() == ([1, 1, 0] if mode == "lines" else [2])
    assert split.chars_D.tolist() == ([4, 2, 2] if mode == "lines" else [5])
    end = "\n" if mode == "lines" else ""
    assert tokenizer.decode(split.tokens_N) == f"ab{end}{end}c{end}"


def test_no_documents():
    for mode in ("lines", "text"):
        split = encode_documents("x", [], mode, fit_tokenizer("char", "abc"))
        assert (len(split.tokens_N), len(split.starts_D), split.chars) == (0, 0, 0)


@pytest.mark.parametrize(("tokenizer", "dtype"), [("char", "u1"), ("byte", "u2"), ("bpe:300", "u2")])
def test_tokens_use_the_smallest_dtype(tokenizer, dtype):
    assert build_corpus("lines", tokenizer).splits["train"].tokens_N.dtype == np.dtype(dtype)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 64),
    st.integers(1, 16),
    st.integers(0, 8),
    st.sampled_from(["lines", "text"]),
)
def test_no_context_crosses_a_document_boundary(lengths, batch_tokens, block, prefix, mode):
    lines = ["".join(rng.choice("abc") for _ in range(n)) for n in lengths]
    lines = lines if mode == "lines" else ["".join(lines)]
    tokenizer = fit_tokenizer("char", "abc")
    split = encode_documents("x", [lines], mode, tokenizer)
    shuffled = ShuffledLoader(split, 0, Batching(batch_tokens, block, 0), context_prefix=prefix)
    batches = [shuffled.next() for _ in range(5)]
    batches += [b for b in OrderedLoader(split, 0, batch_tokens) if not b.continues]
    # The boundary occurs only at a document's start, and no context comes from another document.
    docs = [[0, *tokenizer.encode(line).tolist(), *([0] if mode == "lines" else [])] for line in lines]
    for inputs_BT, targets_BT, _ in batches:
        for inputs, targets in zip(inputs_BT.tolist(), targets_BT.tolist(), strict=True):
            scored = [i for i, t in enumerate(targets) if t != IGNORE_INDEX]
            row = inputs[: scored[-1] + 1]
            assert 0 not in row[1:]
            assert scored == list(range(scored[0], scored[-1] + 1))
            after = [*row[1:], targets[scored[-1]]]
            assert any(
                d[i : i + len(row) + 1] == [*row, after[-1]] for d in docs for i in range(len(d) - len(row))
            )
            assert [targets[i] for i in scored] == after[scored[0] :]


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_first_input_of_a_document_is_the_boundary(mode):
    split = build_corpus(mode, "char").splits["train"]
    assert (split.inputs_at(split.starts_D, 0) == 0).all()
    index = np.setdiff1d(np.arange(len(split.tokens_N)), split.starts_D)
    assert (split.inputs_at(index, 0) == split.tokens_N[index - 1]).all()


def test_batches_are_int64():
    split = build_corpus("lines", "char").splits["train"]
    batch = ShuffledLoader(split, 0, Batching(64, 16, 0), context_prefix=0).next()
    assert batch.inputs_BT.dtype == batch.targets_BT.dtype == torch.int64
    assert batch.inputs_BT.shape == batch.targets_BT.shape
