"""Exported Hugging Face folders, loaded by the transformers library."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from makemore.errors import UserError
from makemore.interop.hf import hf_files
from makemore.models.base import LanguageModel
from makemore.tokenizers import Tokenizer, fit_tokenizer
from makemore.tokenizers.published import PublishedTokenizer
from makemore.tokenizers.ranks import Ranks
from tests.interop.nonzero_models import nonzero_transformer

pytestmark = pytest.mark.slow

LITERAL = "<|endoftext|>"
"""The boundary's spelling, which is ordinary text in a text."""
TEXT = "Wörld, it's 1234 — \t  日本 {}\n\n  <|tag|> aaaaaaa bababa\r\n it'll\u00a0go\x00 e\u0301" * 3
TEXT += f" {LITERAL} and {LITERAL}"
NANOCHAT = {"conv": 1, "gate": False, "score_scale": 1.0}
STYLES = pytest.mark.parametrize("settings", [{"style": "gpt2"}, NANOCHAT], ids=["gpt2", "modern"])
SPECS = pytest.mark.parametrize("spec", ["char", "byte", "bpe:300", "full"])


def make_tokenizer(spec: str) -> Tokenizer:
    if spec != "full":
        return fit_tokenizer(spec, [TEXT])
    tokens = [bytes([b]) for b in reversed(range(256))] + [b"aa", b"aaa", b" b", b" ba", b"it", b"bab"]
    gpt2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    return PublishedTokenizer("gpt2", Ranks(gpt2, tokens), np.ones(len(tokens), bool))


def export(folder: Path, model: LanguageModel, tokenizer: Tokenizer) -> Path:
    for name, content in hf_files(model, tokenizer).items():
        (folder / name).write_bytes(content)
    return folder


def load(class_name: str, folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    return getattr(transformers, class_name).from_pretrained(folder)


@STYLES
@SPECS
def test_logits_are_equal(settings: dict[str, Any], spec: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(spec)
    model = nonzero_transformer(tokenizer.vocab_size, **settings)
    export(tmp_path, model, tokenizer)
    ids = load("AutoTokenizer", tmp_path)(TEXT[:40], return_tensors="pt")["input_ids"]
    hf_model = load("AutoModelForCausalLM", tmp_path).eval()
    expected = model(ids)[0]
    assert expected.std() > 0.5
    torch.testing.assert_close(hf_model(ids).logits, expected, atol=1e-4, rtol=0)
    assert hf_model.num_parameters() == model.n_parameters()


@STYLES
def test_greedy_samples_are_equal(settings: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = make_tokenizer("char")
    model = nonzero_transformer(tokenizer.vocab_size, **settings)
    hf_model = load("AutoModelForCausalLM", export(tmp_path, model, tokenizer)).eval()
    prompt = torch.tensor([[0, 3, 5, 1]])
    generated = hf_model.generate(prompt, max_new_tokens=20, do_sample=False)[0].tolist()
    expected = prompt[0].tolist()
    while len(expected) < 24 and (len(expected) == 4 or expected[-1]):
        expected.append(int(model(torch.tensor([expected]))[0][0, -1].argmax()))
    assert generated == expected


@STYLES
def test_a_padded_row_has_the_text_of_the_row_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = make_tokenizer("char")
    model = nonzero_transformer(tokenizer.vocab_size, **settings)
    hf_model = load("AutoModelForCausalLM", export(tmp_path, model, tokenizer)).eval()
    texts = ["it", "bababa", "Wör"]
    hf_tokenizer = load("AutoTokenizer", tmp_path)
    batch = hf_tokenizer(texts, padding=True, return_tensors="pt")
    assert batch["input_ids"][0, :5].tolist() == [0] * 5
    options = {"max_new_tokens": 20, "do_sample": False, "min_new_tokens": 20}
    together = hf_model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    for text, row in zip(texts, together.tolist(), strict=True):
        alone = hf_tokenizer(text, return_tensors="pt")
        assert row == hf_model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :].tolist()


@SPECS
def test_tokenizer_gives_the_same_ids(spec: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(spec)
    hf = load(
        "AutoTokenizer", export(tmp_path, nonzero_transformer(tokenizer.vocab_size, **NANOCHAT), tokenizer)
    )
    rng = random.Random(0)
    for text in [
        TEXT,
        "",
        LITERAL,
        f"a{LITERAL}\n{LITERAL}{LITERAL} b",
        *("".join(rng.choices(TEXT, k=rng.randrange(60))) for _ in range(200)),
    ]:
        ids = hf(text)["input_ids"]
        assert ids == [0, *tokenizer.encode(text).tolist()]
        assert hf.decode(ids, skip_special_tokens=True) == text
    assert (hf.bos_token_id, hf.eos_token_id, len(hf)) == (0, 0, tokenizer.vocab_size)


def test_tokenizers_hugging_face_cannot_express_are_refused() -> None:
    full = make_tokenizer("full")
    assert isinstance(full, PublishedTokenizer)
    partial = PublishedTokenizer("gpt2", full.ranks, np.arange(len(full.ranks.tokens)) < 258)
    for tokenizer, reason in ((partial, "tiktoken:gpt2:full"), (fit_tokenizer("spm:300", [TEXT]), "spm")):
        with pytest.raises(UserError, match=reason):
            hf_files(nonzero_transformer(tokenizer.vocab_size, **NANOCHAT), tokenizer)
