"""Dynamic evaluation: segments are scored before the update on them, and weights are restored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from makemore.corpus.splits import encode_documents
from makemore.errors import UserError
from makemore.evaluation.dynamic import SEGMENT_TOKENS, DynamicSettings, dynamic_nats
from makemore.evaluation.scoring import token_nats
from makemore.models import MODELS
from makemore.models.base import CountModel, MixtureModel
from makemore.tokenizers.char import CharTokenizer
from tests.conformance.fixtures import nonzero_model

ALPHABET = CharTokenizer("abcdefghij")
GRADIENT_MODELS = [n for n in MODELS if not issubclass(MODELS.get(n), CountModel | MixtureModel)]


def splits(mode: str, seed: int = 0):
    """A train split, and a repetitive val split."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefghij"), 6)) for _ in range(120)]
    cycle = [words[i % 4] for i in range(120)]
    if mode == "text":
        words, cycle = ["".join(words)], ["".join(cycle)]
    return tuple(
        encode_documents(name, [texts], mode, ALPHABET) for name, texts in (("train", words), ("val", cycle))
    )


@pytest.mark.parametrize("mode", ["lines", "text"])
@pytest.mark.parametrize("name", GRADIENT_MODELS)
def test_zero_learning_rate_gives_the_plain_score(name, mode):
    train, val = splits(mode)
    model = nonzero_model(name)
    plain = token_nats(model, val)
    frozen = dynamic_nats(model, val, train, DynamicSettings(lr=0.0))
    np.testing.assert_allclose(frozen, plain, atol=2e-4)


@pytest.mark.parametrize("mode", ["lines", "text"])
@pytest.mark.parametrize("name", GRADIENT_MODELS)
def test_learns_only_from_already_scored_tokens(name, mode):
    train, val = splits(mode)
    model = nonzero_model(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plain = token_nats(model, val)
    dynamic = dynamic_nats(model, val, train, DynamicSettings(lr=0.0005))
    assert dynamic.sum() < plain.sum()
    first = slice(0, 7 if mode == "lines" else SEGMENT_TOKENS // 2)
    np.testing.assert_allclose(dynamic[first], plain[first], atol=2e-4)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_update_matches_the_paper():
    """Two bigram segments by hand: RMS-scaled gradients, and decay towards the initial weights."""
    train, val = splits("text")
    model = nonzero_model("bigram")
    settings = DynamicSettings(lr=0.05, decay=0.3, epsilon=0.01)

    def gradient(weights, split, begin):
        weights = weights.clone().requires_grad_()
        index = np.arange(begin, min(begin + SEGMENT_TOKENS, len(split.tokens_N)))
        targets = torch.from_numpy(split.tokens_N[index].astype(np.int64))
        loss = F.cross_entropy(weights[torch.from_numpy(split.inputs_at(index, 0))], targets)
        return torch.autograd.grad(loss, weights)[0], loss.item()

    initial = model.W.detach()
    squares = [gradient(initial, train, at)[0] ** 2 for at in range(0, len(train.tokens_N), SEGMENT_TOKENS)]
    rms = (sum(squares) / len(squares)).sqrt()
    weights, expected = initial, []
    for at in (0, SEGMENT_TOKENS):
        step, loss = gradient(weights, val, at)
        expected.append(loss)
        decay = (settings.decay * rms / rms.mean()).clamp(max=1)
        weights = (
            weights + decay * (initial - weights) - settings.lr * step / (rms + settings.epsilon * rms.mean())
        )
    nats = dynamic_nats(model, val, train, settings)
    losses = [float(nats[at : at + SEGMENT_TOKENS].mean()) for at in (0, SEGMENT_TOKENS)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_models_without_gradients_are_refused():
    train, val = splits("lines")
    for name in ("count", "mixture"):
        with pytest.raises(UserError, match="isn't trained by gradients"):
            dynamic_nats(nonzero_model(name), val, train)


def test_divergence_is_reported():
    train, val = splits("text")
    with pytest.raises(UserError, match=r"diverged by token \d+ of val"):
        dynamic_nats(nonzero_model("mlp"), val, train, DynamicSettings(lr=1e30))
    with pytest.raises(UserError, match="needs lr >= 0"):
        DynamicSettings(lr=-1)
