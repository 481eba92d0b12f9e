"""The recurrent models against their equations, written out in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from makemore.models.rnn import GRU, LSTM, RNN, Recurrent, RecurrentConfig
from makemore.settings import CorpusStats

VOCAB = 7
ALL = pytest.mark.parametrize("model_class", [RNN, GRU, LSTM])


def make(model_class: type[Recurrent], **settings: Any) -> Recurrent:
    """A small float64 model in eval mode with a nonzero head."""
    torch.manual_seed(0)
    model = model_class(RecurrentConfig(**{"n_embd": 3, "n_hidden": 5, "n_layer": 2, **settings}), VOCAB, 0)
    torch.nn.init.normal_(model.head.weight)
    return model.double().eval()


def random_tokens(batch: int = 3, length: int = 9) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def step(
    model_class: type[Recurrent], x_BC: Tensor, state: tuple[Tensor, ...], weights: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """One layer, one token: the equations of each cell, gates in PyTorch's order."""
    w, u, b, c = weights
    if model_class is RNN:
        return (torch.tanh(x_BC @ w.T + b + state[0] @ u.T + c),)
    from_input, from_state = x_BC @ w.T + b, state[0] @ u.T + c
    if model_class is GRU:
        (r, z, n), (rh, zh, nh) = from_input.chunk(3, 1), from_state.chunk(3, 1)
        reset, update = torch.sigmoid(r + rh), torch.sigmoid(z + zh)
        return ((1 - update) * torch.tanh(n + reset * nh) + update * state[0],)
    i, f, g, o = (from_input + from_state).chunk(4, 1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def reference_logits(model: Recurrent, tokens_BT: Tensor) -> Tensor:
    sequence = model.embedding(tokens_BT)
    for layer in range(model.config.n_layer):
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = tuple(getattr(model.layers, f"{kind}_l{layer}") for kind in kinds)
        state = tuple(part[:, layer].double() for part in model.init_state(len(tokens_BT), 0))
        outputs = []
        for t in range(tokens_BT.shape[1]):
            state = step(type(model), sequence[:, t], state, weights)
            outputs.append(state[0])
        sequence = torch.stack(outputs, dim=1)
    return sequence @ model.head.weight.T + model.head.bias


@ALL
def test_logits_match_the_equations(model_class: type[Recurrent]) -> None:
    model, tokens = make(model_class), random_tokens()
    torch.testing.assert_close(model(tokens)[0], reference_logits(model, tokens))


@ALL
def test_gradients_match_the_equations(model_class: type[Recurrent]) -> None:
    model, tokens = make(model_class), random_tokens()
    parameters = list(model.parameters())
    grads, expected = (
        torch.autograd.grad(logits.square().sum(), parameters)
        for logits in (model(tokens)[0], reference_logits(model, tokens))
    )
    torch.testing.assert_close(grads, expected)


@ALL
@pytest.mark.parametrize("chunk_sizes", [(9,), (1,) * 9, (4, 1, 3, 1)])
def test_chunked_calls_match_one_call(model_class: type[Recurrent], chunk_sizes: tuple[int, ...]) -> None:
    model, tokens = make(model_class), random_tokens()
    state, chunks = model.init_state(len(tokens), 9), []
    for chunk in tokens.split(chunk_sizes, dim=1):
        logits, state = model(chunk, state)
        chunks.append(logits)
    torch.testing.assert_close(torch.cat(chunks, dim=1), model(tokens)[0])
    assert all(part.shape == (3, 2, 5) for part in state)


@ALL
def test_carried_state_affects_logits_and_follows_row_order(model_class: type[Recurrent]) -> None:
    model, tokens = make(model_class), random_tokens()
    _, state = model(tokens, model.init_state(3, 9))
    fresh, _ = model(tokens)
    assert not torch.allclose(model(tokens, state)[0], fresh)
    swapped = tuple(part[[2, 0, 1]] for part in state)
    torch.testing.assert_close(model(tokens[[2, 0, 1]], swapped)[0], model(tokens, state)[0][[2, 0, 1]])


@ALL
def test_logits_are_causal_and_rows_independent(model_class: type[Recurrent]) -> None:
    model, tokens = make(model_class), random_tokens()
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % VOCAB
    changed[1] = 0
    before, after = model(tokens)[0], model(changed)[0]
    torch.testing.assert_close(before[[0, 2], :5], after[[0, 2], :5])
    assert not torch.allclose(before[0, 5:], after[0, 5:])


@ALL
def test_padding_does_not_affect_gradients(model_class: type[Recurrent]) -> None:
    model, tokens = make(model_class).train(), random_tokens()
    targets = tokens.roll(-1, dims=1)
    targets[0, 4:] = -100
    gradients = []
    for pad in (0, 3):
        tokens[0, 5:] = pad
        loss = F.cross_entropy(model(tokens)[0].flatten(0, 1), targets.flatten())
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(*gradients)


@ALL
def test_initial_loss_is_ln_v(model_class: type[Recurrent]) -> None:
    model = model_class(RecurrentConfig(), VOCAB, 0)
    tokens = random_tokens()
    loss = F.cross_entropy(model(tokens)[0].flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(math.log(VOCAB), abs=1e-6)


@ALL
def test_state_can_be_carried_under_autocast(model_class: type[Recurrent]) -> None:
    model, tokens = make(model_class).float(), random_tokens()
    expected, _ = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        _, state = model(tokens[:, :4], model.init_state(3, 9))
        logits, _ = model(tokens[:, 4:], state)
    torch.testing.assert_close(logits.float(), expected[:, 4:], atol=0.1, rtol=0.1)


def test_lstm_forget_gate_bias_starts_at_one() -> None:
    layers = make(LSTM).layers
    for layer in range(2):
        bias = getattr(layers, f"bias_ih_l{layer}") + getattr(layers, f"bias_hh_l{layer}")
        assert torch.equal(bias[5:10], torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("settings", [{"n_hidden": 0}, {"n_layer": 0}, {"dropout": 1.0}])
def test_invalid_settings_are_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        RecurrentConfig(**settings)


def test_the_recipe_adds_dropout_when_text_is_repeated_often() -> None:
    def dropout(seconds: float, tokens: int) -> float:
        return LSTM.recipe(CorpusStats("text", tokens, 66, 1, tokens, "cpu", max_time=seconds)).model.dropout

    assert dropout(90.0, 1_000_000) == 0.0
    assert dropout(300.0, 1_000_000) == 0.19
    assert dropout(60.0, 30_000) == 0.6
