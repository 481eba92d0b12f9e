"""Documents as tokens, and the batches cut from them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from makemore.corpus.documents import SPLITS, make_documents
from makemore.corpus.loader import OrderedLoader, ShuffledLoader
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
    documents = make_documents(text_of(mode), CorpusConfig(mode))
    return {name: documents.all(name) for name in SPLITS}


def corpus(mode: str, tokenizer: str):
    return make_corpus(text_of(mode), CorpusConfig(mode), tokenizer)


@pytest.mark.parametrize("mode", ["lines", "text"])
@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe:270", "spm:300"])
def test_a_split_s_tokens_spell_its_documents(mode, tokenizer):
    made = corpus(mode, tokenizer)
    for name, split in made.splits.items():
        documents = documents_of(mode)[name]
        end = "\n" if mode == "lines" else ""
        assert len(split.starts_D) == len(documents)
        for document, start, stop, chars, size in zip(
            documents, split.starts_D, split.ends_D, split.chars_D, split.bytes_D, strict=True
        ):
            assert made.tokenizer.decode(split.tokens_N[start:stop]) == document + end
            assert chars == len(document + end)
            assert size == len((document + end).encode())
        assert made.tokenizer.token_bytes()[split.tokens_N].sum() == split.bytes


def test_lines_seen_in_train_are_marked():
    made, parts = corpus("lines", "char"), documents_of("lines")
    train = set(parts["train"])
    assert made.splits["train"].in_train_D is None
    assert made.splits["val"].in_train_D.tolist() == [d in train for d in parts["val"]]
    assert made.split("val+test").in_train_D.tolist() == [d in train for d in parts["val"] + parts["test"]]
    assert corpus("text", "char").splits["val"].in_train_D is None


def test_joined_splits():
    lines, text = corpus("lines", "char"), corpus("text", "char")
    both = lines.split("val+test").tokens_N
    assert both.tolist() == [*lines.splits["val"].tokens_N, *lines.splits["test"].tokens_N]
    joined = text.split("val+test")
    assert len(joined.starts_D) == 1
    assert text.tokenizer.decode(joined.tokens_N) == TEXT[int(len(TEXT) * 0.9) :]


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_what_cannot_be_spelled_is_left_out_and_counted(mode):
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


@pytest.mark.parametrize(("tokenizer", "kind"), [("char", "u1"), ("byte", "u2"), ("bpe:300", "u2")])
def test_tokens_take_the_smallest_room(tokenizer, kind):
    assert corpus("lines", tokenizer).splits["train"].tokens_N.dtype == np.dtype(kind)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 64),
    st.integers(1, 16),
    st.integers(0, 8),
    st.sampled_from(["lines", "text"]),
)
def test_no_context_crosses_a_document_s_begin(lengths, batch_tokens, block, lead, mode):
    lines = ["".join(rng.choice("abc") for _ in range(n)) for n in lengths]
    lines = lines if mode == "lines" else ["".join(lines)]
    tokenizer = fit_tokenizer("char", "abc")
    split = encode_documents("x", [lines], mode, tokenizer)
    shuffled = ShuffledLoader(split, 0, batch_tokens, block, lead, seed=0)
    batches = [shuffled.next() for _ in range(5)]
    batches += [b for b in OrderedLoader(split, 0, batch_tokens) if not b.continues]
    # Only a begin is the boundary, and nothing of the document before is seen.
    whole = [[0, *tokenizer.encode(line).tolist(), *([0] if mode == "lines" else [])] for line in lines]
    for inputs_BT, targets_BT, _ in batches:
        for inputs, targets in zip(inputs_BT.tolist(), targets_BT.tolist(), strict=True):
            counted = [i for i, t in enumerate(targets) if t != IGNORE_INDEX]
            row = inputs[: counted[-1] + 1]
            assert 0 not in row[1:]
            assert counted == list(range(counted[0], counted[-1] + 1))
            after = [*row[1:], targets[counted[-1]]]
            assert any(
                d[i : i + len(row) + 1] == [*row, after[-1]] for d in whole for i in range(len(d) - len(row))
            )
            assert [targets[i] for i in counted] == after[counted[0] :]


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_a_document_s_first_input_is_the_boundary(mode):
    split = corpus(mode, "char").splits["train"]
    assert (split.inputs_at(split.starts_D, 0) == 0).all()
    index = np.setdiff1d(np.arange(len(split.tokens_N)), split.starts_D)
    assert (split.inputs_at(index, 0) == split.tokens_N[index - 1]).all()


def test_batches_are_whole_numbers_of_64_bits():
    split = corpus("lines", "char").splits["train"]
    batch = ShuffledLoader(split, 0, 64, 16, 0, seed=0).next()
    assert batch.inputs_BT.dtype == batch.targets_BT.dtype == torch.int64
    assert batch.inputs_BT.shape == batch.targets_BT.shape
