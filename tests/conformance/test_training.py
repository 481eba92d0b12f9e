"""Every registered model trains, is deterministic, resumes and samples through the same workflows."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest
import torch

from makemore.evaluation.evaluate import evaluate
from makemore.models import MODELS
from makemore.models.base import CountModel
from makemore.runs.run import load
from makemore.sampling.text import SampleRequest, sample
from makemore.training.records import TrainingInterrupted
from makemore.training.request import TrainRequest
from makemore.training.train import train
from tests.conformance.fixtures import BOUNDARY

TRAINABLE_MODELS = [name for name in MODELS if MODELS.get(name).is_trainable]
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("name", TRAINABLE_MODELS)]


@pytest.fixture
def lines(tmp_path):
    """Words of a tiny regular language: alternating consonants and vowels, no vowel repeated."""
    rng = random.Random(7)
    words = [
        "".join(rng.choice("bdkl") + v for v in rng.sample("aeiou", rng.randint(2, 4))) for _ in range(300)
    ]
    path = tmp_path / "words.txt"
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def prose(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text("the cat sat on the mat. the dog ate the hat. " * 120, encoding="utf-8")
    return path


def request_for(path, name, out, **train):
    settings = {
        "steps": 60,
        "batch_tokens": 512,
        "block_size": 64,
        "compile": "no",
        "dtype": "float32",
        **train,
    }
    return TrainRequest(input=str(path), model=name, out=out, train=settings)


def boundary_probability(run, ids):
    """Probability that the boundary follows these tokens."""
    with torch.no_grad():
        logits, _ = run.model(torch.from_numpy(np.array(ids, np.int64))[None])
    return float(logits[0, -1].softmax(-1)[BOUNDARY])


def test_learns_lines(name, lines, tmp_path):
    result = train(request_for(lines, name, tmp_path / "run"))
    # Uniform over the letters that can follow: ln 5 = 1.6; over all: ln 10 = 2.3.
    assert result.score.nll < 1.75
    assert boundary_probability(load(result.run.folder.path), [BOUNDARY]) < 1e-10
    assert result.score.tokens == result.score.chars == result.score.bytes
    assert not any("\n" in text for text in result.samples)


def test_learns_text(name, prose, tmp_path):
    result = train(request_for(prose, name, tmp_path / "run"))
    assert result.score.nll < 2.2  # uniform: ln 16 = 2.77
    run = load(result.run.folder.path)
    assert boundary_probability(run, run.tokenizer.encode("the cat ")) < 1e-10


def test_the_same_seed_gives_the_same_results(name, lines, tmp_path):
    runs = [train(request_for(lines, name, tmp_path / str(i), steps=8)) for i in range(2)]
    assert runs[0].score.nats == runs[1].score.nats
    assert runs[0].samples == runs[1].samples


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:270", "spm:280"])
def test_training_with_any_tokenizer(name, tokenizer, lines, tmp_path):
    request = dataclasses.replace(request_for(lines, name, tmp_path / "run", steps=2), tokenizer=tokenizer)
    result = train(request)
    by_char = train(request_for(lines, name, tmp_path / "by_char", steps=2))
    assert (result.score.chars, result.score.bytes) == (by_char.score.chars, by_char.score.bytes)
    assert result.score.tokens <= result.score.bytes
    loaded = load(tmp_path / "run")
    assert evaluate(loaded, split="val").nats == pytest.approx(result.score.nats, rel=1e-5)
    assert not any("\n" in text for text in result.samples)


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_resuming_is_exact(name, mode, lines, prose, tmp_path):
    path = lines if mode == "lines" else prose
    settings = {"steps": 12, "eval_interval": 5}
    if issubclass(MODELS.get(name), CountModel):
        settings["batch_tokens"] = 256  # several steps, in the single pass
    full = train(request_for(path, name, tmp_path / "full", **settings))
    stops = iter([False] * 5 + [True] * 1000)
    with pytest.raises(TrainingInterrupted):
        train(request_for(path, name, tmp_path / "cut", **settings), stop=lambda: next(stops))
    request = request_for(path, name, tmp_path / "cut")
    resumed = train(TrainRequest(input=request.input, model=name, out=request.out, resume=True))
    assert resumed.score.nats == full.score.nats
    assert resumed.steps == full.steps
    steps = [
        [json.loads(line)["step"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("full", "cut")
    ]
    assert steps[1][-1] == steps[0][-1]
    assert sorted(set(steps[1])) == steps[1]


def test_a_run_is_self_contained(name, lines, tmp_path):
    trained = train(request_for(lines, name, tmp_path / "run", steps=5))
    lines.rename(tmp_path / "gone.txt")
    run = load(tmp_path / "run")
    request = SampleRequest(n=5, seed=3, prompt="ba")
    texts = list(sample(run, request))
    assert texts == list(sample(trained.run, request))
    assert len(texts) == 5
    assert all(text.startswith("ba") for text in texts)
    assert evaluate(run, tmp_path / "gone.txt", "val").nats == trained.score.nats


def test_samples_do_not_depend_on_the_number_requested(name, lines, tmp_path):
    run = train(request_for(lines, name, tmp_path / "run", steps=20)).run
    many = list(sample(run, SampleRequest(n=6, seed=1)))
    assert many[:2] == list(sample(run, SampleRequest(n=2, seed=1)))
