"""ARPA files, read by the format's definition and by KenLM, against the model's distributions."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from makemore.errors import UserError
from makemore.interop.arpa import UNKNOWN_LOG10, arpa_lines, word_list
from makemore.models.bigram import Bigram, BigramConfig
from makemore.models.count import Count
from makemore.models.smoothing import CountConfig
from makemore.tokenizers import Tokenizer, fit_tokenizer
from makemore.types import Batch

WORDS = ["anna", "hannah", "an na", "bob", "nab", "bana na", "a", "<s>", "é é", "ba▁b"]


def sample_lines(n: int, seed: int = 0) -> list[str]:
    return random.Random(seed).choices(WORDS, k=n)


def train_count(tokenizer: Tokenizer, **settings: object) -> Count:
    model = Count(CountConfig(**settings), tokenizer.vocab_size, 0)  # type: ignore[arg-type]
    for line in sample_lines(40):
        ids = torch.from_numpy(np.concatenate([[0], tokenizer.encode(line), [0]]).astype(np.int64))[None]
        model.count_batch(Batch(ids[:, :-1], ids[:, 1:]))
    model.finish()
    return model


class Arpa:
    """ARPA's definition: an n-gram's entry, else the context's back-off plus the shorter n-gram's score."""

    def __init__(self, text: str) -> None:
        self.sizes: dict[int, int] = {}
        self.entries: dict[tuple[str, ...], tuple[float, float]] = {}
        order, state = 0, ""
        for line in text.splitlines():
            if line.startswith("\\") or not line:
                state = line or state
                order = int(line[1]) if line.endswith("-grams:") else order
            elif state == "\\data\\":
                self.sizes[int(line[6])] = int(line[8:])
            else:
                p, words, *rest = line.split("\t")
                ngram = tuple(words.split(" "))
                assert len(ngram) == order
                assert ngram not in self.entries
                self.entries[ngram] = (float(p), float(rest[0]) if rest else 0.0)
        assert state == "\\end\\"
        for n, size in self.sizes.items():
            assert size == sum(len(ngram) == n for ngram in self.entries)

    def log10(self, context: tuple[str, ...], word: str) -> float:
        ngram = (*context, word)
        if ngram in self.entries:
            return self.entries[ngram][0]
        backoff = self.entries[context][1] if context in self.entries else 0.0
        return backoff + self.log10(context[1:], word)


def model_log10(model: Count, ids: np.ndarray) -> list[float]:
    tokens = torch.from_numpy(np.append(0, ids).astype(np.int64))[None]
    log_p = model(tokens[:, :-1])[0].double().log_softmax(-1)
    return (log_p[0].gather(1, tokens[0, 1:, None])[:, 0] / math.log(10)).tolist()


@pytest.mark.parametrize("spec", ["char", "byte", "bpe:280"])
@pytest.mark.parametrize("smoothing", ["kneser-ney", "recursive-additive"])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_arpa_scores_match_the_model(spec: str, smoothing: str, order: int) -> None:
    tokenizer = fit_tokenizer(spec, sample_lines(40))
    model = train_count(tokenizer, order=order, smoothing=smoothing)
    arpa, words = Arpa("\n".join(arpa_lines(model, tokenizer))), word_list(tokenizer)
    assert max(arpa.sizes) == order
    rng = random.Random(1)
    unseen = ["".join(rng.choices("abhn é", k=9)) for _ in range(10)]
    for line in [*WORDS, *unseen]:
        ids = np.append(tokenizer.encode(line), 0).astype(np.int64)
        context: tuple[str, ...] = ("<s>",)
        for token, expected in zip(ids.tolist(), model_log10(model, ids), strict=True):
            history = context[-(order - 1) :] if order > 1 else ()
            assert arpa.log10(history, words[token]) == pytest.approx(expected, abs=2e-6)
            context = (*context, words[token])


@pytest.mark.parametrize("spec", ["char", "byte", "bpe:280", "spm:300"])
def test_words_are_distinct_and_contain_no_whitespace(spec: str) -> None:
    tokenizer = fit_tokenizer(spec, ["a b\tc\n\u00a0\u2003d</s>" + " ".join(WORDS)])
    words = word_list(tokenizer)
    assert len(set(words)) == tokenizer.vocab_size
    assert all(word.split() == [word] and word.isprintable() for word in words)
    assert words[0] == "</s>"


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_kenlm_scores_match_the_model(mode: str, tmp_path: Path) -> None:
    kenlm = pytest.importorskip("kenlm")
    tokenizer = fit_tokenizer("char", sample_lines(40))
    model = train_count(tokenizer, order=4)
    path = tmp_path / "count.arpa"
    path.write_text("".join(f"{line}\n" for line in arpa_lines(model, tokenizer)), encoding="utf-8")
    kenlm_model, words = kenlm.Model(str(path)), word_list(tokenizer)
    for line in [*WORDS, "hanna", "bbbb", "é<a"]:
        ids = tokenizer.encode(line).astype(np.int64)
        sentence = " ".join(words[i] for i in ids.tolist())
        has_eos = mode == "lines"
        expected = model_log10(model, np.append(ids, 0) if has_eos else ids)
        scores = [score for score, *_ in kenlm_model.full_scores(sentence, bos=True, eos=has_eos)]
        assert scores == pytest.approx(expected, abs=1e-5)
        assert kenlm_model.score(sentence, bos=True, eos=has_eos) == pytest.approx(sum(expected), abs=1e-4)


def test_models_without_backoff_are_refused() -> None:
    tokenizer = fit_tokenizer("char", sample_lines(40))
    with pytest.raises(UserError, match="kneser-ney or recursive-additive"):
        list(arpa_lines(train_count(tokenizer, order=2, smoothing="additive"), tokenizer))
    with pytest.raises(UserError, match="is for count"):
        list(arpa_lines(Bigram(BigramConfig(), 5, 0), tokenizer))


def test_an_unknown_character_costs_the_same_at_the_start_of_a_line(tmp_path: Path) -> None:
    """The back-off weight of ``<s>`` was 0 where all tokens are listed after it (kenlm#377)."""
    kenlm = pytest.importorskip("kenlm")
    tokenizer = fit_tokenizer("char", sample_lines(40))
    path = tmp_path / "count.arpa"
    lines = arpa_lines(train_count(tokenizer, order=4), tokenizer)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (first, *_), *_ = kenlm.Model(str(path)).full_scores("\u017e", bos=True, eos=False)
    assert first == pytest.approx(UNKNOWN_LOG10, abs=1e-4)
