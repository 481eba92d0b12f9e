"""Faults reported with training that takes all memory without a warning; comments describe the reports."""

from __future__ import annotations

import random
import string

import numpy as np
import pytest

from makemore.errors import UserError
from makemore.models import MODELS
from makemore.models.ngrams import NgramTable, estimate_sizes
from makemore.training import planning
from makemore.training.observers import NullObserver
from makemore.training.planning import prepare
from makemore.training.request import TrainRequest
from tests.cli.conftest import prose, words

rng = random.Random(5)
TEXTS = {
    "random": "".join(rng.choices(string.ascii_lowercase, k=60_000)),
    "words": words(12_000),
    "prose": prose() * 20,
}


class Notes(NullObserver):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def notes_of(path, model, **settings):
    """Notes on a model's memory, before it is trained."""
    observer = Notes()
    overrides = tuple(f"{key}={value}" for key, value in settings.items())
    prepare(TrainRequest(input=str(path), model=model, out=path.parent / "run", settings=overrides), observer)
    return [line for line in observer.lines if "to train" in line]


# n-grams that never recur, as of random letters, take hundreds of times the text's memory (as in kenlm#67).
@pytest.mark.parametrize("name", TEXTS)
def test_the_number_of_ngrams_is_estimated_from_a_part(monkeypatch, name):
    monkeypatch.setattr("makemore.models.ngrams.ESTIMATE_TOKENS", 10_000)
    alphabet, ids_N = np.unique(list(TEXTS[name]), return_inverse=True)
    ids_N, vocab_size = ids_N + 1, len(alphabet) + 1
    true = NgramTable.count(8, vocab_size, 0, ids_N[:-1], ids_N[1:]).size
    estimate = sum(estimate_sizes(ids_N, 8, vocab_size, 0))
    assert true * 0.9 < estimate < true * (1.2 if name == "random" else 3)  # two grammars of a few words


def test_the_memory_of_ngrams_is_noted_or_refused_before_counting(tmp_path, monkeypatch):
    path = tmp_path / "letters.txt"
    path.write_text(TEXTS["random"], encoding="utf-8")
    assert notes_of(path, "count") == []
    monkeypatch.setattr(planning, "MIN_NOTED_GB", 0.01)
    (note,) = notes_of(path, "count")
    assert "n-grams for 26 characters take about 0.1 GB to train; a lower model.max_order" in note
    assert notes_of(path, "count", **{"model.max_order": 2}) == []
    monkeypatch.setattr(planning, "total_memory_gb", lambda device: 0.05)
    with pytest.raises(UserError, match=r"n-grams .* but only 0\.1 GB are available; a lower model"):
        notes_of(path, "count")


# A Chinese text, whose table of pairs takes gigabytes; nothing says so, or offers other tokens.
@pytest.mark.parametrize("model", [name for name in MODELS if MODELS.get(name).is_trainable])
def test_the_cost_of_many_characters_is_noted_or_refused(tmp_path, monkeypatch, model):
    path = tmp_path / "large.txt"
    chars = [chr(0x4E00 + i) for i in range(1200)]
    path.write_text("".join(chars + rng.choices(chars, k=4000)), encoding="utf-8")
    (note,) = notes_of(path, model)
    assert "for 1,200 characters take about " in note
    assert "; -t bpe:2048 or -t byte takes less" in note
    monkeypatch.setattr(planning, "total_memory_gb", lambda device: 1e-3)
    with pytest.raises(UserError, match=r"for 1,200 characters take .* available; -t bpe:2048 or -t byte"):
        notes_of(path, model)


def test_many_characters_and_too_many_layers_are_a_user_error(tmp_path):
    path = tmp_path / "large.txt"
    path.write_text("".join(chr(0x4E00 + i) for i in range(1200)), encoding="utf-8")
    with pytest.raises(UserError, match="lower its --set model"):
        notes_of(path, "transformer", **{"model.n_layer": 10**9})
