"""Checks from the lectures (initial loss, saturation, smoothing, batch norm) on every model they fit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.models import MODELS
from makemore.models.base import CountModel, LanguageModel
from makemore.models.count import Count
from makemore.models.mlp import MLP, MLPConfig
from makemore.models.smoothing import CountConfig
from makemore.types import Batch

V = 27
GRADIENT_MODELS = [
    name for name in MODELS if MODELS.get(name).is_trainable and not issubclass(MODELS.get(name), CountModel)
]
BATCH_NORM_MODELS = ["batchnorm-mlp", "wavenet"]


def make(name: str) -> LanguageModel:
    torch.manual_seed(0)
    model_class = MODELS.get(name)
    return model_class(model_class.Config(), V, 0)


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


@pytest.mark.parametrize("name", GRADIENT_MODELS)
def test_initial_loss_is_ln_v(name: str) -> None:
    assert loss_of(make(name)) == pytest.approx(math.log(V), abs=1e-5)


@pytest.mark.parametrize("name", GRADIENT_MODELS)
def test_a_unit_normal_head_raises_the_initial_loss(name: str) -> None:
    model = make(name)
    torch.nn.init.normal_(output_weights(model))
    assert loss_of(model) > math.log(V) + 0.3


def test_a_unit_normal_head_on_a_wide_layer_triples_the_initial_loss() -> None:
    model = make("mlp")
    torch.nn.init.normal_(model.head.weight)
    assert loss_of(model) > 3 * math.log(V)


def saturated_fraction(model: MLP) -> float:
    """Fraction of hidden activations with abs(tanh) above 0.97."""
    inputs, _ = words()
    preactivations: list[Tensor] = []
    handle = model.hidden[-1].register_forward_hook(lambda module, args, out: preactivations.append(out))
    model(inputs)
    handle.remove()
    return (preactivations[0].tanh().abs() > 0.97).float().mean().item()


def test_kaiming_init_avoids_tanh_saturation() -> None:
    torch.manual_seed(0)
    model = MLP(MLPConfig(), V, 0)
    assert saturated_fraction(model) < 0.2
    torch.nn.init.normal_(model.hidden[0].weight)
    assert saturated_fraction(model) > 0.6


def test_stronger_smoothing_moves_counts_towards_uniform() -> None:
    inputs, targets = words()
    losses, distances = [], []
    for alpha in (0.01, 1.0, 100.0, 1e7):
        model = Count(CountConfig(order=2, smoothing="additive", alpha=alpha), V, 0)
        model.count_batch(Batch(inputs, targets))
        model.finish()
        losses.append(loss_of(model))
        # The boundary isn't a target of this text.
        distances.append((model(inputs)[0][..., 1:].exp() - 1 / (V - 1)).abs().max().item())
    assert losses == sorted(losses)
    assert distances == sorted(distances, reverse=True)
    assert losses[-1] == pytest.approx(math.log(V - 1), abs=1e-4)
    assert distances[-1] < 1e-4


@pytest.mark.parametrize("name", BATCH_NORM_MODELS)
def test_batch_norm_evaluates_a_single_example(name: str) -> None:
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
