"""The recurrent rungs against their equations, written out in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.models.rnn import GRU, LSTM, RNN, Recurrent, RecurrentConfig

VOCAB = 7
ALL = pytest.mark.parametrize("rung", [RNN, GRU, LSTM])


def make(rung: type[Recurrent], **settings: Any) -> Recurrent:
    """A small float64 model in eval mode whose head isn't silent."""
    torch.manual_seed(0)
    model = rung(RecurrentConfig(**{"n_embd": 3, "n_hidden": 5, "n_layer": 2, **settings}), VOCAB, 0)
    torch.nn.init.normal_(model.head.weight)
    return model.double().eval()


def some_tokens(batch: int = 3, length: int = 9) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def step(
    rung: type[Recurrent], x_BC: Tensor, state: tuple[Tensor, ...], weights: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """One layer, one token: the equations of each network, gates in PyTorch's order."""
    w, u, b, c = weights
    if rung is RNN:
        return (torch.tanh(x_BC @ w.T + b + state[0] @ u.T + c),)
    below, back = x_BC @ w.T + b, state[0] @ u.T + c
    if rung is GRU:
        (r, z, n), (rh, zh, nh) = below.chunk(3, 1), back.chunk(3, 1)
        reset, keep = torch.sigmoid(r + rh), torch.sigmoid(z + zh)
        return ((1 - keep) * torch.tanh(n + reset * nh) + keep * state[0],)
    i, f, g, o = (below + back).chunk(4, 1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def gradient_source(model: Recurrent, tokens_BT: Tensor) -> Tensor:
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
def test_follows_the_equations(rung: type[Recurrent]) -> None:
    model, tokens = make(rung), some_tokens()
    torch.testing.assert_close(model(tokens)[0], gradient_source(model, tokens))


@ALL
def test_gradients_follow_the_equations(rung: type[Recurrent]) -> None:
    model, tokens = make(rung), some_tokens()
    parameters = list(model.parameters())
    found, expected = (
        torch.autograd.grad(logits.square().sum(), parameters)
        for logits in (model(tokens)[0], gradient_source(model, tokens))
    )
    torch.testing.assert_close(found, expected)


@ALL
@pytest.mark.parametrize("cuts", [(9,), (1,) * 9, (4, 1, 3, 1)])
def test_chunks_equal_the_whole(rung: type[Recurrent], cuts: tuple[int, ...]) -> None:
    model, tokens = make(rung), some_tokens()
    state, chunks = model.init_state(len(tokens), 9), []
    for chunk in tokens.split(cuts, dim=1):
        logits, state = model(chunk, state)
        chunks.append(logits)
    torch.testing.assert_close(torch.cat(chunks, dim=1), model(tokens)[0])
    assert all(part.shape == (3, 2, 5) for part in state)


@ALL
def test_carried_state_matters_and_takes_rows_along(rung: type[Recurrent]) -> None:
    model, tokens = make(rung), some_tokens()
    _, state = model(tokens, model.init_state(3, 9))
    fresh, _ = model(tokens)
    assert not torch.allclose(model(tokens, state)[0], fresh)
    swapped = tuple(part[[2, 0, 1]] for part in state)
    torch.testing.assert_close(model(tokens[[2, 0, 1]], swapped)[0], model(tokens, state)[0][[2, 0, 1]])


@ALL
def test_causal_and_rows_apart(rung: type[Recurrent]) -> None:
    model, tokens = make(rung), some_tokens()
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % VOCAB
    changed[1] = 0
    before, after = model(tokens)[0], model(changed)[0]
    torch.testing.assert_close(before[[0, 2], :5], after[[0, 2], :5])
    assert not torch.allclose(before[0, 5:], after[0, 5:])


@ALL
def test_padding_takes_no_part_in_training(rung: type[Recurrent]) -> None:
    model, tokens = make(rung).train(), some_tokens()
    targets = tokens.roll(-1, dims=1)
    targets[0, 4:] = -100
    gradients = []
    for pad in (0, 3):
        tokens[0, 5:] = pad
        loss = F.cross_entropy(model(tokens)[0].flatten(0, 1), targets.flatten())
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(*gradients)


@ALL
def test_first_loss_is_that_of_guessing(rung: type[Recurrent]) -> None:
    model = rung(RecurrentConfig(), VOCAB, 0)
    tokens = some_tokens()
    loss = F.cross_entropy(model(tokens)[0].flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(math.log(VOCAB), abs=1e-6)


@ALL
def test_state_goes_on_under_autocast(rung: type[Recurrent]) -> None:
    model, tokens = make(rung).float(), some_tokens()
    expected, _ = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        _, state = model(tokens[:, :4], model.init_state(3, 9))
        logits, _ = model(tokens[:, 4:], state)
    torch.testing.assert_close(logits.float(), expected[:, 4:], atol=0.1, rtol=0.1)


def test_lstm_begins_with_open_forget_gates() -> None:
    layers = make(LSTM).layers
    for layer in range(2):
        bias = getattr(layers, f"bias_ih_l{layer}") + getattr(layers, f"bias_hh_l{layer}")
        assert torch.equal(bias[5:10], torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("settings", [{"n_hidden": 0}, {"n_layer": 0}, {"dropout": 1.0}])
def test_refuses_impossible_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        RecurrentConfig(**settings)
