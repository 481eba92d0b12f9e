"""The neural bigram against the count bigram, its optimum."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.models.bigram import Bigram, BigramConfig
from makemore.models.count import Count
from makemore.models.smoothing import CountConfig
from makemore.training.records import TrainResult
from makemore.training.request import TrainRequest
from makemore.training.train import train
from makemore.types import Batch

V = 6
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def corpus(length: int = 400) -> tuple[Tensor, Tensor]:
    """Inputs and targets (1, T) with skewed successors; some pairs never occur."""
    rng = random.Random(3)
    tokens = [0]
    while len(tokens) <= length:
        tokens.append((tokens[-1] * 2 + rng.choice([1, 1, 1, 2, 2, 3])) % V)
    row = torch.tensor([tokens])
    return row[:, :-1], row[:, 1:]


def converged_model(weight_penalty: float = 0.0) -> Bigram:
    """A bigram trained with full-batch L-BFGS in float64 until convergence."""
    model = Bigram(BigramConfig(weight_penalty=weight_penalty), V, 0).double()
    inputs, targets = corpus()
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=500,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs)[0].flatten(0, 1), targets.flatten())
        penalty = model.regularization_loss()
        total = loss if penalty is None else loss + penalty
        total.backward()
        return total

    optimizer.step(closure)
    return model


def pair_counts() -> Tensor:
    """Bigram counts of the corpus (V, V), float64."""
    counts = torch.zeros(V, V, dtype=torch.float64)
    for current, target in zip(*(part.flatten().tolist() for part in corpus()), strict=True):
        counts[current, target] += 1
    return counts


def distance_to_uniform(probabilities_VV: Tensor) -> float:
    """Largest distance after any token but the boundary, which no boundary follows in the count bigram."""
    return (probabilities_VV[1:] - 1 / V).abs().max().item()


def count_bigram_probs(alpha: float) -> Tensor:
    """The count bigram's probabilities (V, V)."""
    model = Count(CountConfig(order=2, smoothing="additive", alpha=alpha), V, 0)
    model.count_batch(Batch(*corpus()))
    model.finish()
    return model(torch.arange(V)[:, None])[0][:, 0].exp().double()


def test_logits_are_one_hot_times_weights() -> None:
    model = Bigram(BigramConfig(), V, 0)
    torch.nn.init.normal_(model.W)
    tokens = torch.tensor([[0, 3, 5, 1], [0, 0, 2, 4]])
    torch.testing.assert_close(model(tokens)[0], F.one_hot(tokens, V).float() @ model.W)


def test_initial_loss_is_ln_v() -> None:
    inputs, targets = corpus()
    loss = F.cross_entropy(Bigram(BigramConfig(), V, 0)(inputs)[0].flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(math.log(V), abs=1e-6)


def test_converged_weights_match_the_count_bigram() -> None:
    counts = pair_counts()
    assert (counts == 0).any()
    frequencies = counts / counts.sum(1, keepdim=True)
    torch.testing.assert_close(converged_model().W.softmax(1).detach(), frequencies, atol=1e-4, rtol=0)
    torch.testing.assert_close(count_bigram_probs(alpha=0.0), frequencies, atol=1e-6, rtol=0)


def test_at_convergence_penalty_and_loss_gradients_balance() -> None:
    strength = 0.3
    model, counts = converged_model(strength), pair_counts()
    excess = model.W.softmax(1) - counts / counts.sum(1, keepdim=True)
    gradient = counts.sum(1, keepdim=True) / counts.sum() * excess
    torch.testing.assert_close(gradient, -2 * strength / V**2 * model.W, atol=1e-7, rtol=0)


def test_stronger_penalty_and_smoothing_approach_uniform() -> None:
    penalised = [converged_model(s).W.detach().softmax(1) for s in (0.0, 0.01, 0.1, 1.0, 10.0, 1e4)]
    smoothed = [count_bigram_probs(alpha) for alpha in (0.0, 0.1, 1.0, 10.0, 100.0, 1e6)]
    for tables in (penalised, smoothed):
        distances = [distance_to_uniform(table) for table in tables]
        assert distances == sorted(distances, reverse=True)
        assert distances[0] > 0.3
        assert distances[-1] < 1e-3


def test_a_negative_penalty_is_rejected() -> None:
    with pytest.raises(ValueError, match="weight_penalty"):
        BigramConfig(weight_penalty=-1.0)


# --- names.txt, with the lectures' split ---------------------------------------------------------

ADDITIVE = {"model.order": 2, "model.smoothing": "additive", "model.alpha": 1}


def run(names: Path, model: str, out: Path, settings: dict[str, Any], split: str = "auto") -> TrainResult:
    request = TrainRequest(
        input=str(names),
        model=model,
        out=out,
        train={"dtype": "float32", "compile": "no", "device": "cpu"},
        corpus={"mode": "lines", "split": split},
        settings=tuple(f"{key}={value}" for key, value in settings.items()),
    )
    return train(request)


def lectures_bigram(train_words: list[str], scored_words: list[str]) -> float:
    """Add-one-smoothed bigram loss in nats per character, line ends included. Unlike in the lecture, lines
    aren't blank: no one is added to the count of a line end at the start of a line."""
    pairs = Counter(p for word in train_words for p in pairwise(f".{word}."))
    totals: Counter[str] = Counter()
    for (before, _), n in pairs.items():
        totals[before] += n
    nats = [
        -math.log((pairs[p] + 1) / (totals[p[0]] + len(LETTERS) + (p[0] != ".")))
        for word in scored_words
        for p in pairwise(f".{word}.")
    ]
    return sum(nats) / len(nats)


def test_counting_all_names_gives_the_lectures_loss(names_file: Path, tmp_path: Path) -> None:
    result = run(names_file, "count", tmp_path / "all", ADDITIVE, "1,0,0")
    words = names_file.read_text().split()
    assert result.score.split == "train"
    assert result.score.nll == pytest.approx(2.4544, abs=5e-4)
    assert result.score.nll == pytest.approx(lectures_bigram(words, words), abs=1e-6)


def test_counting_and_training_reach_the_same_loss_on_names(names_file: Path, tmp_path: Path) -> None:
    words = names_file.read_text().split()
    random.Random(42).shuffle(words)
    n1, n2 = int(0.8 * len(words)), int(0.9 * len(words))
    count_score = run(names_file, "count", tmp_path / "count", ADDITIVE).score
    assert count_score.split == "val"
    assert count_score.tokens == sum(len(word) + 1 for word in words[n1:n2])
    assert count_score.nll == pytest.approx(lectures_bigram(words[:n1], words[n1:n2]), abs=1e-6)
    bigram_score = run(names_file, "bigram", tmp_path / "bigram", {"train.steps": 200}).score
    assert bigram_score.nll == pytest.approx(count_score.nll, abs=0.002)
