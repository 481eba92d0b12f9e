"""The probabilities of ``--show-probs``, against the model's forward pass on the same text."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from makemore.runs.run import load
from makemore.sampling import SampleParams
from makemore.sampling.probabilities import sample_with_probs
from makemore.sampling.text import SampleRequest, context_ids, sample
from makemore.training.request import TrainRequest
from makemore.training.train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("probabilities")
    rng = random.Random(3)
    words = ["".join(rng.choices("bdklaei", k=rng.randint(1, 6))) for _ in range(300)]
    (path / "words.txt").write_text("\n".join(words), encoding="utf-8")
    (path / "prose.txt").write_text(" ".join(words) + ".", encoding="utf-8")
    for model in ("count", "gru"):
        settings = () if model == "count" else ("train.steps=20", "train.compile=no", "model.n_hidden=16")
        for name in ("words", "prose"):
            request = TrainRequest(input=str(path / f"{name}.txt"), model=model, out=path / f"{model}-{name}")
            train(TrainRequest(input=request.input, model=model, out=request.out, settings=settings))
    return path


@pytest.mark.parametrize("name", ["count-words", "gru-words", "count-prose", "gru-prose"])
@pytest.mark.parametrize("index", [0, 3])
def test_probabilities_match_the_forward_pass(folder, name, index):
    run = load(folder / name)
    request = SampleRequest(n=1, prompt="ba", max_new_tokens=20, params=SampleParams(0.7, top_k=4), seed=6)
    tokens = sample_with_probs(run, request, index)
    # The text is the same as without probabilities.
    text = "".join(token.text for token in tokens)
    assert ["ba" + text.removesuffix("\n")] == list(sample(run, request, index))
    prompt = context_ids(run, request)
    text_ids = run.tokenizer.encode(text.removesuffix("\n")).tolist()
    ids = [*prompt.tolist(), *text_ids, *([0] if text.endswith("\n") else [])]
    with torch.no_grad():
        logits = run.model(torch.tensor([ids[:-1]]))[0][0, len(prompt) - 1 :]
    p = logits.double().softmax(-1).numpy()
    assert len(tokens) == len(p)
    for row, token_id, token in zip(p, ids[len(prompt) :], tokens, strict=True):
        assert token.p == pytest.approx(row[token_id], rel=1e-4)
        positive = row[row > 0]
        assert token.entropy == pytest.approx(-(positive * np.log2(positive)).sum(), abs=1e-4)
        assert [q for _, q in token.top] == pytest.approx(sorted(row, reverse=True)[:5], rel=1e-4)
        best = run.tokenizer.decode([int(row.argmax())])
        assert token.top[0][0] == best


def test_stop_string_ends_the_sample(folder):
    run = load(folder / "count-prose")
    unstopped = SampleRequest(n=1, prompt="ba", max_new_tokens=200, seed=1)
    text = "".join(t.text for t in sample_with_probs(run, unstopped, 0))
    stop = text[50:52]
    stopped = sample_with_probs(
        run, SampleRequest(n=1, prompt="ba", max_new_tokens=200, stop=stop, seed=1), 0
    )
    assert "".join(t.text for t in stopped) == text[: text.index(stop) + 2]


def test_certain_tokens_have_little_entropy(folder, tmp_path):
    (tmp_path / "ab.txt").write_text("ab" * 500)
    train(TrainRequest(input=str(tmp_path / "ab.txt"), model="count", out=tmp_path / "run"))
    for token in sample_with_probs(
        load(tmp_path / "run"), SampleRequest(n=1, prompt="a", max_new_tokens=10, seed=1), 0
    ):
        assert token.p > 0.99
        assert 0 <= token.entropy < 0.1
        assert math.isclose(sum(q for _, q in token.top), 1, abs_tol=1e-6)
