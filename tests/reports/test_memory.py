"""Faults reported with training that takes all memory without a warning; comments describe the reports."""

from __future__ import annotations

import random
import string

import numpy as np
import pytest
import torch

from makemore.errors import UserError
from makemore.models import MODELS
from makemore.models.count import Count
from makemore.models.ngrams.builder import empty_table, merge_tables
from makemore.models.ngrams.counter import count_ngrams, estimate_sizes
from makemore.models.smoothing import CountConfig
from makemore.training import planning
from makemore.training.observers import Observer
from makemore.training.planning import prepare
from makemore.training.request import TrainRequest
from makemore.types import Batch
from tests.cli.conftest import prose, words

rng = random.Random(5)
TEXTS = {
    "random": "".join(rng.choices(string.ascii_lowercase, k=60_000)),
    "words": words(12_000),
    "prose": prose() * 20,
}


class Notes(Observer):
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
    monkeypatch.setattr("makemore.models.ngrams.counter.ESTIMATE_TOKENS", 10_000)
    alphabet, ids_N = np.unique(list(TEXTS[name]), return_inverse=True)
    ids_N, vocab_size = ids_N + 1, len(alphabet) + 1
    true = count_ngrams(8, vocab_size, 0, ids_N[:-1], ids_N[1:]).size
    estimate = sum(estimate_sizes(ids_N, 8, vocab_size, 0))
    assert true * 0.9 < estimate < true * (1.2 if name == "random" else 3)  # two grammars of a few words


def test_the_memory_of_ngrams_is_noted_or_refused_before_counting(tmp_path, monkeypatch):
    path = tmp_path / "letters.txt"
    path.write_text(TEXTS["random"], encoding="utf-8")
    assert notes_of(path, "count") == []
    monkeypatch.setattr(planning, "MIN_NOTED_GB", 0.01)
    monkeypatch.setattr("makemore.models.count.BYTES_PER_NGRAM", 200)
    (note,) = notes_of(path, "count")
    assert "n-grams for 26 characters take about 0.1 GB to train; a lower model.max_order" in note
    assert notes_of(path, "count", **{"model.max_order": 2}) == []
    monkeypatch.setattr(planning, "total_memory_gb", lambda device: 0.05)
    with pytest.raises(UserError, match=r"n-grams .* but only 0\.1 GB are available; a lower model"):
        notes_of(path, "count")


def test_the_highest_order_is_lowered_to_limit_the_number_of_ngrams(monkeypatch):
    """The order that is left is counted completely, however the text is cut."""
    monkeypatch.setattr("makemore.models.count.MAX_NGRAMS", 40_000)
    monkeypatch.setattr("makemore.models.ngrams.counter.COUNT_CHUNK_SIZE", 7_000)
    ids_N = np.unique(list(TEXTS["random"]), return_inverse=True)[1] + 1
    inputs, targets = torch.from_numpy(ids_N)[None, :-1], torch.from_numpy(ids_N)[None, 1:]
    model = Count(CountConfig(), 27, 0)
    for i in range(0, inputs.shape[1], 1_000):
        model.count_batch(Batch(inputs[:, i : i + 1_000], targets[:, i : i + 1_000], continues=i > 0))
    table = model.table
    assert table.size <= 40_000
    larger = count_ngrams(table.order + 1, 27, 0, ids_N[:-1], ids_N[1:])
    assert larger.size > 40_000
    expected = merge_tables(larger.cut(table.order), empty_table(table.order, 27, 0))
    assert table.sizes == expected.sizes
    for n in range(1, table.order + 1):
        np.testing.assert_array_equal(table.keys(n), expected.keys(n))
        np.testing.assert_array_equal(table.counts(n), expected.counts(n))
    model.finish([Batch(inputs[:, :1_000], targets[:, :1_000])])
    assert model.order <= table.order
    loaded = Count(model.config, 27, 0)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded(inputs[:, :50])[0], model(inputs[:, :50])[0])
    explicit = Count(CountConfig(order=8), 27, 0)
    explicit.count_batch(Batch(inputs, targets))
    assert explicit.table.order == 8


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
    with pytest.raises(UserError, match="choose smaller settings"):
        notes_of(path, "transformer", **{"model.n_layer": 10**9})
