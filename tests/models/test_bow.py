"""The bag of words against averages computed one position at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from makemore.models.bow import BagOfWords, BagOfWordsConfig

VOCAB = 7


def make(block_size: int = 4) -> BagOfWords:
    """A small float64 model in eval mode with a nonzero head."""
    torch.manual_seed(0)
    config = BagOfWordsConfig(block_size=block_size, n_embd=3, n_hidden=5)
    model = BagOfWords(config, VOCAB, 0)
    torch.nn.init.normal_(model.head.weight)
    return model.double().eval()


def random_tokens(batch: int = 3, length: int = 9) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_averages_only_the_tokens_of_the_window(block_size: int) -> None:
    model, tokens = make(block_size), random_tokens()
    logits, _ = model(tokens)
    for t in range(tokens.shape[1]):
        window = tokens[:, max(0, t + 1 - block_size) : t + 1]
        x = model.embedding(tokens[:, t]) + model.embedding(window).mean(dim=1)
        x = x + model.down(torch.tanh(model.up(x)))
        torch.testing.assert_close(logits[:, t], model.head(x))


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("chunk_sizes", [(9,), (1,) * 9, (4, 1, 3, 1)])
def test_chunked_calls_with_state_match_one_call(block_size: int, chunk_sizes: tuple[int, ...]) -> None:
    model, tokens = make(block_size), random_tokens()
    state, chunks = model.init_state(3, 9), []
    for chunk in tokens.split(chunk_sizes, dim=1):
        logits, state = model(chunk, state)
        chunks.append(logits)
    torch.testing.assert_close(torch.cat(chunks, dim=1), model(tokens)[0])
    assert state[0].shape == (3, block_size - 1)


def test_a_token_affects_exactly_block_size_positions() -> None:
    model, tokens = make(), random_tokens()
    changed = tokens.clone()
    changed[:, 2] = (changed[:, 2] + 1) % VOCAB
    differs = (model(tokens)[0] - model(changed)[0]).abs().amax(dim=(0, 2)) > 1e-12
    assert differs.nonzero().flatten().tolist() == [2, 3, 4, 5]


def test_token_order_within_the_window_does_not_matter() -> None:
    model = make()
    shuffled = torch.tensor([[1, 2, 3, 5], [3, 1, 2, 5]])
    logits, _ = model(shuffled)
    torch.testing.assert_close(logits[0, -1], logits[1, -1])


def test_rows_are_independent() -> None:
    model, tokens = make(), random_tokens()
    torch.testing.assert_close(model(tokens)[0][1:2], model(tokens[1:2])[0])


def test_initial_loss_is_ln_v() -> None:
    model, tokens = BagOfWords(BagOfWordsConfig(), VOCAB, 0), random_tokens()
    loss = F.cross_entropy(model(tokens)[0].flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(math.log(VOCAB), abs=1e-6)


@pytest.mark.parametrize("settings", [{"block_size": 0}, {"n_embd": 0}, {"n_hidden": 0}])
def test_invalid_settings_are_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        BagOfWordsConfig(**settings)
