"""Exported folders, loaded by Hugging Face's own transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from makemore.errors import UserError
from makemore.interop.hf import hf_files
from makemore.models import MODELS
from makemore.models.base import LanguageModel
from makemore.tokenizers import Tokenizer, fit_tokenizer
from makemore.tokenizers.published import PublishedTokenizer
from makemore.tokenizers.ranks import Ranks
from tests.conformance.fixtures import nonzero_model
from tests.interop.nonzero_models import loud_transformer

TEXT = "Wörld, it's 1234 — \t  日本 {}\n\n  <|tag|> aaaaaaa bababa\r\n it'll\u00a0go\x00 e\u0301" * 3
STYLES = pytest.mark.parametrize("settings", [{"style": "gpt2"}, {"conv": 1}], ids=["gpt2", "modern"])
SPECS = pytest.mark.parametrize("spec", ["char", "byte", "bpe:300", "full"])


def tokenizer_of(spec: str) -> Tokenizer:
    if spec != "full":
        return fit_tokenizer(spec, [TEXT])
    tokens = [bytes([b]) for b in reversed(range(256))] + [b"aa", b"aaa", b" b", b" ba", b"it", b"bab"]
    gpt2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    return PublishedTokenizer("gpt2", Ranks(gpt2, tokens), np.ones(len(tokens), bool))


def write(folder: Path, model: LanguageModel, tokenizer: Tokenizer) -> Path:
    for name, data in hf_files(model, tokenizer).items():
        (folder / name).write_bytes(data)
    return folder


def auto(kind: str, folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    return getattr(transformers, kind).from_pretrained(folder)


@STYLES
@SPECS
def test_logits_are_equal(settings: dict[str, Any], spec: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(spec)
    model = loud_transformer(tokenizer.vocab_size, **settings)
    write(tmp_path, model, tokenizer)
    ids = auto("AutoTokenizer", tmp_path)(TEXT[:40], return_tensors="pt")["input_ids"]
    theirs = auto("AutoModelForCausalLM", tmp_path).eval()
    expected = model(ids)[0]
    assert expected.std() > 0.5
    torch.testing.assert_close(theirs(ids).logits, expected, atol=1e-4, rtol=0)
    assert theirs.num_parameters() == model.n_parameters()


@STYLES
def test_greedy_samples_are_equal(settings: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = tokenizer_of("char")
    model = loud_transformer(tokenizer.vocab_size, **settings)
    theirs = auto("AutoModelForCausalLM", write(tmp_path, model, tokenizer)).eval()
    prompt = torch.tensor([[0, 3, 5, 1]])
    made = theirs.generate(prompt, max_new_tokens=20, do_sample=False)[0].tolist()
    ours = prompt[0].tolist()
    while len(ours) < 24 and (len(ours) == 4 or ours[-1]):
        ours.append(int(model(torch.tensor([ours]))[0][0, -1].argmax()))
    assert made == ours


@SPECS
def test_the_tokenizer_has_the_same_ids(spec: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(spec)
    theirs = auto("AutoTokenizer", write(tmp_path, loud_transformer(tokenizer.vocab_size, conv=1), tokenizer))
    rng = random.Random(0)
    for text in [TEXT, "", *("".join(rng.choices(TEXT, k=rng.randrange(60))) for _ in range(200))]:
        ids = theirs(text)["input_ids"]
        assert ids == [0, *tokenizer.encode(text).tolist()]
        assert theirs.decode(ids, skip_special_tokens=True) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (0, 0, tokenizer.vocab_size)


def test_what_has_no_stock_architecture_is_refused() -> None:
    tokenizer = tokenizer_of("char")
    with pytest.raises(UserError, match=r"short convolutions.*model\.style=gpt2"):
        hf_files(loud_transformer(tokenizer.vocab_size), tokenizer)
    for name in set(MODELS) - {"transformer"}:
        with pytest.raises(UserError, match="is for the transformer"):
            hf_files(nonzero_model(name), tokenizer)


def test_tokenizers_that_the_library_cannot_express_are_refused() -> None:
    full = tokenizer_of("full")
    assert isinstance(full, PublishedTokenizer)
    part = PublishedTokenizer("gpt2", full.ranks, np.arange(len(full.ranks.tokens)) < 258)
    for tokenizer, reason in ((part, "tiktoken:gpt2:full"), (fit_tokenizer("spm:300", [TEXT]), "spm")):
        with pytest.raises(UserError, match=reason):
            hf_files(loud_transformer(tokenizer.vocab_size, conv=1), tokenizer)
