"""Models without a stock architecture, exported with their code and loaded by the transformers library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from makemore.errors import UserError
from makemore.interop.export import export
from makemore.interop.hf import hf_files
from makemore.models import MODELS
from makemore.models.base import CountModel, LanguageModel, MixtureModel
from makemore.models.wavenet import WaveNet, WaveNetConfig
from makemore.runs.run import load
from makemore.sampling.generate import generate
from makemore.sampling.logits import SampleParams
from makemore.sampling.text import SampleRequest, sample
from makemore.tokenizers import Tokenizer, fit_tokenizer
from makemore.training.request import TrainRequest
from makemore.training.train import train
from tests.comparison.test_compare import write_prose, write_words
from tests.conformance.fixtures import VOCAB, documents, nonzero_model
from tests.interop.nonzero_models import nonzero_transformer

pytestmark = pytest.mark.slow

TOKENIZER = fit_tokenizer("char", ["abcdefghij"])
KINDS = {name: MODELS.get(name) for name in MODELS}
NAMES = [name for name, kind in KINDS.items() if not issubclass(kind, CountModel | MixtureModel)]

PACKED = [name for name in NAMES if KINDS[name].supports_packing]


def loaded(model: LanguageModel, folder: Path, tokenizer: Tokenizer = TOKENIZER) -> Any:
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    for name, content in hf_files(model, tokenizer).items():
        (folder / name).write_bytes(content)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def exported_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def padded_batch(folder: Path, **options: Any) -> Any:
    """Two texts of different lengths, by the exported tokenizer."""
    return exported_tokenizer(folder)(["eb", "cada"], padding=True, return_tensors="pt", **options)


def greedy(model: LanguageModel, prompt: torch.Tensor, n: int) -> list[int]:
    steps = generate(model, prompt.numpy(), n, SampleParams(greedy=True))
    return [int(ids[0]) for ids in steps]


@pytest.mark.parametrize("name", [*NAMES, "gated"])
def test_logits_and_greedy_texts_are_equal(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = WaveNet(WaveNetConfig(style="gated"), VOCAB, 0).eval() if name == "gated" else nonzero_model(name)
    if name == "gated":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.set_document_ends("never")
    exported = loaded(model, tmp_path)
    tokens = documents(3, 40)[:, :-1]
    with torch.no_grad():
        expected = model(tokens)[0]
        torch.testing.assert_close(exported(tokens).logits, expected, atol=1e-4, rtol=1e-4)
    assert expected[..., 1:].std() > 0.05
    assert exported.num_parameters() == model.n_parameters()
    prompt = torch.tensor([[0, 3, 1, 4]])
    length = 500 if name in ("transformer", "lstm") else 120
    text = exported.generate(prompt, max_new_tokens=length, do_sample=False)[0, 4:].tolist()
    assert text == greedy(model, prompt, length)
    n = 100  # within the transformer\'s context
    again = exported.generate(prompt, max_new_tokens=n, do_sample=False, use_cache=False)[0, 4:].tolist()
    assert again == text[:n]


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_padded_row_has_the_text_of_the_row_alone(name: str, use_cache: bool, tmp_path: Path) -> None:
    model = nonzero_model(name)
    model.set_document_ends("never")
    exported = loaded(model, tmp_path)
    batch = padded_batch(tmp_path)
    assert batch["input_ids"].tolist() == [[0, 0, 0, 5, 2], [0, 3, 1, 4, 1]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    texts = exported.generate(**batch, max_new_tokens=40, do_sample=False, use_cache=use_cache)[:, 5:]
    rows = batch["input_ids"]
    assert texts.tolist() == [greedy(model, row, 40) for row in (rows[:1, 2:], rows[1:])]


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(PACKED)))
def test_models_that_see_the_padding_refuse_it(name: str, tmp_path: Path) -> None:
    exported = loaded(nonzero_model(name), tmp_path)
    for side in ("left", "right"):
        batch = padded_batch(tmp_path, padding_side=side)
        for use_cache in (True, False):
            with pytest.raises(ValueError, match="give rows of the same length"):
                exported.generate(**batch, max_new_tokens=2, use_cache=use_cache)
        with pytest.raises(ValueError, match="give rows of the same length"):
            exported(**batch)


def test_padding_that_no_boundary_hides_is_refused(tmp_path: Path) -> None:
    exported = loaded(nonzero_transformer(VOCAB), tmp_path)
    with pytest.raises(ValueError, match="padded on the left"):
        exported.generate(**padded_batch(tmp_path, padding_side="right"), max_new_tokens=2)
    with pytest.raises(ValueError, match="begin with the boundary"):
        exported.generate(**padded_batch(tmp_path, add_special_tokens=False), max_new_tokens=2)


def test_beams_and_a_loss(tmp_path: Path) -> None:
    model = nonzero_transformer(VOCAB)
    exported = loaded(model, tmp_path)
    prompt = torch.tensor([[0, 3, 1]])
    beams = exported.generate(prompt, max_new_tokens=6, num_beams=4, do_sample=False)[0].tolist()
    assert len(beams) > 3
    tokens = documents(2, 12)[:, :-1]
    loss = exported(tokens, labels=tokens).loss
    logits = model(tokens)[0]
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)


def test_an_export_needs_nothing_of_makemore(tmp_path: Path) -> None:
    """A trained run, its tokenizer, in a process that can\'t import makemore."""
    path = write_words(tmp_path / "words.txt")
    train(TrainRequest(input=str(path), model="lstm", out=tmp_path / "run", train={"steps": 20}))
    run = load(tmp_path / "run")
    result = export(run, "hf")
    assert "trust_remote_code=True" in result.note
    code = f"""
import sys
sys.modules["makemore"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(result.path)!r}, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained({str(result.path)!r}, trust_remote_code=True).eval()
ids = tokenizer("bo", return_tensors="pt")["input_ids"]
print(model.generate(ids, max_new_tokens=8, do_sample=False)[0].tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    prompt = np.append(0, run.tokenizer.encode("bo")).astype(np.int64)
    ends = np.array([0])
    expected = [int(ids[0]) for ids in generate(run.model, prompt[None], 8, SampleParams(greedy=True), ends)]
    assert done.stdout.strip() == str([*prompt.tolist(), *expected])


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_greedy_texts_equal_those_of_sample(mode: str, tmp_path: Path) -> None:
    """Running text is continued without the boundary that the exported tokenizer puts before it."""
    path = (write_words if mode == "lines" else write_prose)(tmp_path / "text.txt")
    settings = ("model.n_embd=32", "model.n_layer=1")
    train(
        TrainRequest(
            input=str(path), model="transformer", out=tmp_path / "run", settings=settings, train={"steps": 1}
        )
    )
    run = load(tmp_path / "run")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    exported = loaded(run.model, tmp_path, run.tokenizer)
    prompt = "bado" if mode == "lines" else "bread and"
    tokenizer = exported_tokenizer(tmp_path)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    greedy = SampleParams(greedy=True)
    request = SampleRequest(n=1, prompt=prompt, max_new_tokens=50, params=greedy)
    texts = [
        tokenizer.decode(
            exported.generate(rows, max_new_tokens=50, do_sample=False)[0], skip_special_tokens=True
        )
        for rows in (ids, ids[:, 1:])
    ]
    assert texts[0] != texts[1]
    assert texts[0 if mode == "lines" else 1] == next(sample(run, request))


@pytest.mark.parametrize("name", sorted(set(KINDS) - set(NAMES)))
def test_models_without_weights_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="is for single neural models"):
        hf_files(nonzero_model(name), TOKENIZER)
