"""Mixtures of trained runs: creation, evaluation, sampling and comparison."""

from __future__ import annotations

import random

import pytest

from makemore.comparison.compare import CompareRequest, compare
from makemore.errors import UserError
from makemore.evaluation.evaluate import evaluate
from makemore.runs.run import load
from makemore.sampling.text import SampleRequest, sample
from makemore.training.mixing.mix import mix
from makemore.training.request import TrainRequest
from makemore.training.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixing")
    rng = random.Random(3)
    words = [
        "".join(rng.choice("bdkl") + rng.choice("aei") for _ in range(rng.randint(1, 4))) for _ in range(400)
    ]
    (path / "words.txt").write_text("\n".join(words), encoding="utf-8")
    for name in ("count", "mlp", "transformer", "gru"):
        settings = {"steps": 30, "compile": "no"}
        train(TrainRequest(input=str(path / "words.txt"), model=name, out=path / name, train=settings))
    return path


def test_a_mixture_is_no_worse_than_its_best_member(folder):
    result = mix([folder / n for n in ("count", "mlp", "transformer", "gru")], folder / "mixed")
    best = min(evaluate(load(folder / n)).nll for n in ("count", "mlp", "transformer", "gru"))
    assert result.val.nll <= best + 1e-6
    assert sum(result.weights) == pytest.approx(1.0)
    assert result.test is not None


def test_a_mixture_can_be_evaluated_sampled_and_compared(folder):
    result = mix([folder / "count", folder / "transformer"], folder / "pair")
    run = load(folder / "pair")
    assert evaluate(run).nats == pytest.approx(result.val.nats)
    assert evaluate(run, split="test").nats == pytest.approx(result.test.nats)
    texts = list(sample(run, SampleRequest(n=4, seed=1)))
    assert texts == list(sample(run, SampleRequest(n=4, seed=1)))
    rows = compare(
        CompareRequest(inputs=tuple(str(folder / n) for n in ("count", "transformer", "pair")))
    ).rows
    assert {row.name for row in rows} == {"count", "transformer", "pair"}
    nats = [row.runs[0].score.nats for row in rows]
    assert nats == sorted(nats)


def test_incompatible_runs_are_rejected(folder, tmp_path):
    with pytest.raises(UserError, match="at least two runs"):
        mix([folder / "count"], tmp_path / "m")
    other = tmp_path / "other.txt"
    other.write_text("\n".join(["kala", "bidi", "dale"] * 20), encoding="utf-8")
    train(TrainRequest(input=str(other), model="count", out=tmp_path / "other", train={}))
    with pytest.raises(UserError, match="different"):
        mix([folder / "count", tmp_path / "other"], tmp_path / "m")
    mix([folder / "count", folder / "mlp"], folder / "again")
    with pytest.raises(UserError, match="already holds"):
        mix([folder / "count", folder / "mlp"], folder / "again")
    with pytest.raises(UserError, match="mixture itself"):
        mix([folder / "again", folder / "mlp"], tmp_path / "m")
    assert not (tmp_path / "m").exists()
