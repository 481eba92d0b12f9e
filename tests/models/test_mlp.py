"""The MLP against a loop over single windows, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from makemore.models.mlp import MLP, MLPConfig

VOCAB = 9
LAYERS = pytest.mark.parametrize("n_layer", [1, 3])


def make(boundary_id: int = 0, **settings: Any) -> MLP:
    """A small float64 model in eval mode with all parameters nonzero."""
    torch.manual_seed(0)
    defaults = {"block_size": 4, "n_embd": 3, "n_hidden": 6}
    model = MLP(MLPConfig(**{**defaults, **settings}), VOCAB, boundary_id).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def random_tokens(batch: int = 3, length: int = 9) -> Tensor:
    tokens = torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 0
    return tokens


def window_logits(model: MLP, window: list[int]) -> Tensor:
    """Logits (V,) of the token after a window, oldest token first."""
    x = torch.cat([model.embedding.weight[token] for token in window])
    for layer in model.hidden:
        x = torch.tanh(layer.weight @ x + layer.bias)
    return model.head.weight @ x + model.head.bias


def loop_logits(model: MLP, tokens_BT: Tensor, before: list[int]) -> Tensor:
    size, rows = model.config.block_size, []
    for row in tokens_BT.tolist():
        context, logits = list(before), []
        for token in row:
            if token == model.boundary_id:  # a new document starts: drop the context
                context = [token] * size
            context.append(token)
            logits.append(window_logits(model, context[-size:]))
        rows.append(torch.stack(logits))
    return torch.stack(rows)


@LAYERS
@pytest.mark.parametrize("block_size", [1, 2, 4, 12])
def test_logits_match_the_loop_with_boundary_padding(n_layer: int, block_size: int) -> None:
    model, tokens = make(n_layer=n_layer, block_size=block_size), random_tokens()
    expected = loop_logits(model, tokens, [0] * (block_size - 1))
    assert expected.std() > 0.1
    torch.testing.assert_close(model(tokens)[0], expected, atol=1e-12, rtol=0)


def test_a_boundary_inside_a_row_resets_the_context() -> None:
    model, tokens = make(boundary_id=5), random_tokens()
    assert (tokens[:, 1:] == 5).any()
    torch.testing.assert_close(model(tokens)[0], loop_logits(model, tokens, [5] * 3), atol=1e-12, rtol=0)


def test_state_holds_the_preceding_tokens() -> None:
    model, tokens = make(), random_tokens(1)[:, 1:]
    before = [7, 2, 3]
    logits, state = model(tokens, (torch.tensor([before]),))
    torch.testing.assert_close(logits, loop_logits(model, tokens, before), atol=1e-12, rtol=0)
    assert torch.equal(state[0], tokens[:, -3:])
    _, state = model(tokens[:, :2], (torch.tensor([before]),))
    assert state[0].tolist() == [[3, *tokens[0, :2].tolist()]]


@LAYERS
def test_gradients_match_the_loop(n_layer: int) -> None:
    model, tokens = make(n_layer=n_layer), random_tokens()
    parameters = list(model.parameters())
    grads, expected = (
        torch.autograd.grad(logits.square().sum(), parameters)
        for logits in (model(tokens)[0], loop_logits(model, tokens, [0] * 3))
    )
    torch.testing.assert_close(grads, expected)


@LAYERS
def test_initial_loss_is_ln_v(n_layer: int) -> None:
    model, tokens = MLP(MLPConfig(n_layer=n_layer), VOCAB, 0), random_tokens()
    loss = F.cross_entropy(model(tokens)[0].flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(math.log(VOCAB), abs=1e-6)


def test_dropout_applies_only_in_training() -> None:
    model, without_dropout, tokens = make(dropout=0.5), make(), random_tokens()
    assert torch.equal(model(tokens)[0], without_dropout(tokens)[0])
    model.train()
    assert not torch.allclose(model(tokens)[0], model(tokens)[0])


def test_muon_parameters_are_the_hidden_weights() -> None:
    assert list(make(n_layer=2).muon_parameters()) == ["hidden.0.weight", "hidden.1.weight"]


@pytest.mark.parametrize("settings", [{"block_size": 0}, {"n_layer": 0}, {"dropout": 1.0}])
def test_invalid_settings_are_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        MLPConfig(**settings)
