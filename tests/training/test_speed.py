"""The training speed that recipes are based on is measured."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from makemore.models import MODELS
from makemore.models.scaling import describe_recipe
from makemore.settings import CorpusStats
from makemore.training import planning
from makemore.training.learners import speed
from makemore.training.observers import Observer
from makemore.training.planning import prepare
from makemore.training.request import TrainRequest

STATS = CorpusStats("text", 30_000, 40, 1, 30_000, "cpu", max_time=60.0)


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be, that is the question. " * 800, encoding="utf-8")
    return path


def plan_at(measured: float, text: Path, monkeypatch: pytest.MonkeyPatch, observer=None, **train):
    """The plan on a machine that trains ``measured`` times as fast as the recipe assumes."""
    calls = []

    def measure(kind, model_config, train, vocab_size) -> float:
        calls.append(kind)
        return measured * kind.recipe(STATS).tokens_per_second

    monkeypatch.setattr(planning, "measure_speed", measure)
    request = TrainRequest(input=str(text), model="transformer", train=train, out=text.parent / "run")
    return prepare(request, observer or Observer()), calls


@pytest.mark.parametrize("measured", [0.25, 1.0, 3.0])
def test_dropout_follows_the_measured_speed(measured, text, monkeypatch) -> None:
    notes = Notes()
    plan, _ = plan_at(measured, text, monkeypatch, observer=notes, max_time=20.0)
    expected = MODELS.get("transformer").recipe(
        dataclasses.replace(STATS, train_tokens=plan.corpus.splits["train"].chars, max_time=20.0 * measured)
    )
    assert plan.model.config.dropout == expected.model.dropout
    assert plan.train.optimizer.weight_decay == expected.train.optimizer.weight_decay
    assert f"recipe: {expected.reason}" in notes.notes


def test_steps_alone_need_no_measurement(text, monkeypatch) -> None:
    assert plan_at(1.0, text, monkeypatch, steps=10)[1] == []
    assert plan_at(1.0, text, monkeypatch, max_time=10.0)[1] != []


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_measuring_runs_training_steps_and_leaves_random_numbers(name, monkeypatch) -> None:
    monkeypatch.setattr(speed, "SECONDS", 0.02)
    kind = MODELS.get(name)
    recipe = kind.recipe(STATS)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    monkeypatch.setattr(speed, "measured_speeds", {})
    measured = speed.measure_speed(kind, recipe.model, recipe.train, 40)
    assert torch.equal(torch.rand(3), expected)
    assert math.isfinite(measured)
    assert measured > 0
    other_seed = recipe.train.replace(seed=5)
    assert speed.measure_speed(kind, recipe.model, other_seed, 40) == measured  # not measured again
    assert speed.measure_speed(kind, recipe.model, recipe.train, 1 << 17) is None


@pytest.mark.parametrize(
    ("epochs", "words"),
    [(50.4, "the text about 50 times"), (1.2, "the text about once"), (0.16, "16% of the text")],
)
def test_a_recipe_says_for_which_budget(epochs: float, words: str) -> None:
    assert (
        describe_recipe(4, 96, 0.1, epochs)
        == f"4 layers of width 96 and dropout 0.1, for a budget that covers {words}"
    )
    assert describe_recipe(4, 96, 0.1, math.inf) == ""
