"""What the lectures teach to look at, seen in every rung it applies to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.models import MODELS
from makemore.models.base import CountModel, LanguageModel
from makemore.models.count import Count, CountConfig
from makemore.models.mlp import MLP, MLPConfig
from makemore.types import Batch

V = 27
GRADIENT_RUNGS = [
    name for name in MODELS if MODELS.get(name).is_trainable and not issubclass(MODELS.get(name), CountModel)
]
NORMALISED = ["batchnorm-mlp", "wavenet"]


def make(name: str) -> LanguageModel:
    torch.manual_seed(0)
    kind = MODELS.get(name)
    return kind(kind.Config(), V, 0)


def words(rows: int = 64, length: int = 8) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(1, V, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 0
    return tokens[:, :-1], tokens[:, 1:]


@torch.no_grad()
def loss_of(model: LanguageModel) -> float:
    inputs, targets = words()
    logits, _ = model(inputs)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()


def output_weights(model: LanguageModel) -> Tensor:
    return model.head.weight if hasattr(model, "head") else model.W


@pytest.mark.parametrize("name", GRADIENT_RUNGS)
def test_the_first_loss_is_that_of_guessing(name: str) -> None:
    assert loss_of(make(name)) == pytest.approx(math.log(V), abs=1e-5)


@pytest.mark.parametrize("name", GRADIENT_RUNGS)
def test_a_loud_output_layer_is_confidently_wrong(name: str) -> None:
    model = make(name)
    torch.nn.init.normal_(output_weights(model))
    assert loss_of(model) > math.log(V) + 0.3


def test_a_wide_loud_output_layer_is_the_lectures_hockey_stick() -> None:
    model = make("mlp")
    torch.nn.init.normal_(model.head.weight)
    assert loss_of(model) > 3 * math.log(V)


def saturated(model: MLP) -> float:
    """The share of hidden units in tanh's flat ends."""
    inputs, _ = words()
    kept: list[Tensor] = []
    handle = model.hidden[-1].register_forward_hook(lambda module, given, out: kept.append(out))
    model(inputs)
    handle.remove()
    return (kept[0].tanh().abs() > 0.97).float().mean().item()


def test_kaiming_weights_keep_tanh_out_of_saturation() -> None:
    torch.manual_seed(0)
    model = MLP(MLPConfig(), V, 0)
    assert saturated(model) < 0.2
    torch.nn.init.normal_(model.hidden[0].weight)
    assert saturated(model) > 0.6


def test_heavier_smoothing_moves_counts_towards_the_uniform() -> None:
    inputs, targets = words()
    losses, distances = [], []
    for alpha in (0.01, 1.0, 100.0, 1e7):
        model = Count(CountConfig(order=2, smoothing="additive", alpha=alpha), V, 0)
        model.count_batch(Batch(inputs, targets))
        model.finish()
        losses.append(loss_of(model))
        distances.append((model(inputs)[0].exp() - 1 / V).abs().max().item())
    assert losses == sorted(losses)
    assert distances == sorted(distances, reverse=True)
    assert losses[-1] == pytest.approx(math.log(V), abs=1e-4)
    assert distances[-1] < 1e-4


@pytest.mark.parametrize("name", NORMALISED)
def test_batch_normalisation_takes_a_single_example_once_trained(name: str) -> None:
    model = make(name)
    torch.nn.init.normal_(output_weights(model))
    inputs, _ = words()
    for _ in range(5):
        model.train()(inputs)
    model.eval()
    with torch.no_grad():
        together = model(inputs)[0]
        alone = model(inputs[:1, :1])[0]
    assert together.std() > 0.1
    torch.testing.assert_close(alone, together[:1, :1], atol=1e-4, rtol=1e-4)
