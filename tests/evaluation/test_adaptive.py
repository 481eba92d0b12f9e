"""Adaptive scores: what a token teaches changes only the predictions of later ones, and the model stays."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from makemore.corpus.rows import eval_windows, to_batch
from makemore.corpus.splits import encode_documents
from makemore.errors import UserError
from makemore.evaluation.adaptive import DynamicSettings, learned, make_reader, ngram_cache, prompt_split
from makemore.evaluation.adaptive.dynamic import SEGMENT_TOKENS
from makemore.evaluation.adaptive.gate import SWITCHING, FixedShare, GateLearner
from makemore.evaluation.adaptive.ngram_cache import CONTEXTS, GRID, NgramCache
from makemore.evaluation.scoring import token_nats
from makemore.models import MODELS
from makemore.models.base import CountModel, MixtureModel
from makemore.models.count import Count
from makemore.tokenizers.char import CharTokenizer
from tests.conformance.fixtures import nonzero_model

ALPHABET = CharTokenizer("abcdefghij")
GRADIENT_MODELS = [n for n in MODELS if not issubclass(MODELS.get(n), CountModel | MixtureModel)]


def adaptive_nats(model, split, train, settings=None):
    return make_reader(model, train, settings).read(split).nats_N


def adapted(model, prompt_ids, train):
    return learned(make_reader(model, train), prompt_ids)


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
    frozen = adaptive_nats(model, val, lambda: train, DynamicSettings(lr=0.0))
    np.testing.assert_allclose(frozen, plain, atol=2e-4)


@pytest.mark.parametrize("mode", ["lines", "text"])
@pytest.mark.parametrize("name", GRADIENT_MODELS)
def test_learns_only_from_already_scored_tokens(name, mode):
    train, val = splits(mode)
    model = nonzero_model(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plain = token_nats(model, val)
    dynamic = adaptive_nats(model, val, lambda: train, DynamicSettings(lr=0.0005))
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
    nats = adaptive_nats(model, val, lambda: train, settings)
    losses = [float(nats[at : at + SEGMENT_TOKENS].mean()) for at in (0, SEGMENT_TOKENS)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_divergence_is_reported():
    train, val = splits("text")
    for lr in (1e12, 1e39):  # weights that are still finite, and others
        with pytest.raises(UserError, match=r"diverged by token \d+ of val"):
            adaptive_nats(nonzero_model("mlp"), val, lambda: train, DynamicSettings(lr=lr))
    with pytest.raises(UserError, match="needs lr >= 0"):
        DynamicSettings(lr=-1)


def reference_cache(split, frozen_nats, boundary):
    """The n-gram cache, token by token from dictionaries, and its weights from their definition."""
    successors: dict[tuple[int, ...], list[int]] = {}
    history: dict[int, list[tuple[float, float]]] = {}
    nats = []
    for begin, end in zip(split.starts_D, split.ends_D, strict=True):
        document = [boundary, *split.tokens_N[begin:end].tolist()]
        for i in range(1, len(document)):
            token, p0 = document[i], math.exp(-frozen_nats[begin + i - 1])
            p, longest = p0, 0
            for k in CONTEXTS:
                after = successors.get(tuple(document[i - k : i])) if k <= i else None
                if after:
                    n, d = len(after), len(set(after))
                    p, longest = (after.count(token) + d * p) / (n + d), k
            if longest:
                past = history.setdefault(longest, [])
                logs = [sum(math.log(w * c + (1 - w) * f) for c, f in past) for w in GRID]
                weights = [math.exp(value - max(logs)) for value in logs]
                w = sum(a * b for a, b in zip(weights, GRID, strict=True)) / sum(weights)
                past.append((p, p0))
                p = w * p + (1 - w) * p0
            nats.append(-math.log(p))
            for k in CONTEXTS:
                if k <= i:
                    successors.setdefault(tuple(document[i - k : i]), []).append(token)
    return np.array(nats)


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_the_cache_matches_its_definition(mode, monkeypatch):
    monkeypatch.setattr(ngram_cache, "CHUNK", 50)
    train, val = splits(mode)
    model = Count(Count.Config(), ALPHABET.vocab_size, 0)
    rows = eval_windows(train, len(train.tokens_N), 0)
    model.count_batch(to_batch(train, rows, 0))
    model.finish()
    expected = reference_cache(val, token_nats(model, val), 0)
    nats = adaptive_nats(model, val, no_train)
    np.testing.assert_allclose(nats, expected, rtol=1e-9)
    assert nats.sum() < 0.6 * token_nats(model, val).sum()


def no_train():
    raise AssertionError("the training text isn't needed")


def first_tokens(split, n):
    """A split of one document, cut after n tokens."""
    return prompt_split(split.tokens_N[:n].astype(np.int64), 0)


@pytest.mark.parametrize(("name", "atol"), [("count", 1e-6), ("context-mixing", 0.01)])
def test_an_adapted_model_predicts_like_the_adaptive_score(name, atol):
    """After a prompt, its distribution sums to 1 and has the probability of each possible next token. The
    match models of context mixing read the prompt again, and may follow another occurrence."""
    _, val = splits("text")
    model = nonzero_model(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for n in (1, 20, 100, 333):
        prompt = first_tokens(val, n).tokens_N
        copy = adapted(model, prompt, no_train)
        inputs = torch.from_numpy(np.append(0, prompt))[None]
        logits, _ = copy(inputs, copy.init_state(1, 8))
        p = logits[0, -1].double().softmax(dim=-1).numpy()
        scores = [
            adaptive_nats(model, prompt_split(np.append(prompt, x), 0), no_train)[-1] for x in range(11)
        ]
        assert np.exp(-np.array(scores)).sum() == pytest.approx(1)
        np.testing.assert_allclose(p, np.exp(-np.array(scores)), atol=atol)
        in_pieces, _ = copy(inputs[:, -1:], copy(inputs[:, :-1], copy.init_state(1, 8))[1])
        np.testing.assert_allclose(in_pieces[0, -1], logits[0, -1], atol=1e-5)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_useless_cache_costs_hardly_anything():
    """Independent tokens of a known distribution: nothing in the text helps."""
    rng = np.random.default_rng(0)
    tokens = rng.choice(11, 5000, p=np.arange(11) / 55)
    frozen = -np.log(tokens / 55)
    nats = NgramCache(prompt_split(tokens, 0), 0).score(frozen)
    assert nats.sum() - frozen.sum() < len(CONTEXTS) * math.log(len(GRID))


@pytest.mark.parametrize("name", GRADIENT_MODELS)
def test_a_gradient_model_learns_from_a_prompt(name):
    train, val = splits("text")
    model = nonzero_model(name)
    copy = adapted(model, val.tokens_N.astype(np.int64), lambda: train)
    assert token_nats(copy, val).sum() < token_nats(model, val).sum()
    assert not copy.training


def test_a_mixture_combines_its_members_adaptive_probabilities():
    train, val = splits("lines")
    mixture = nonzero_model("mixture")
    nats = [adaptive_nats(member, val, lambda: train) for member in mixture.members]
    expected = -np.log(mixture.weights.numpy() @ np.exp(-np.stack(nats)))
    np.testing.assert_allclose(adaptive_nats(mixture, val, lambda: train), expected, rtol=1e-9)
    prompt = val.tokens_N[:30].astype(np.int64)
    copy = adapted(mixture, prompt, lambda: train)
    tokens = torch.from_numpy(val.tokens_N[None, :20].astype(np.int64))
    expected = [
        adapted(member, prompt, lambda: train)(tokens)[0].softmax(-1).detach() for member in mixture.members
    ]
    mixed = sum(w * p for w, p in zip(mixture.weights.float(), expected, strict=True))
    torch.testing.assert_close(copy(tokens)[0].exp().detach(), mixed, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_a_gate_learns_from_the_past_only(mode):
    """Changing a text's second half leaves the nats of its first half as they are."""
    train, val = splits(mode)
    model = nonzero_model("auto")
    changed = dataclasses.replace(val, tokens_N=val.tokens_N.copy())
    half = int(val.starts_D[len(val.starts_D) // 2]) if mode == "lines" else len(val.tokens_N) // 2
    ends = np.isin(val.tokens_N, model.boundary_id)
    later = (np.arange(len(val.tokens_N)) >= half) & ~ends
    changed.tokens_N[later] = val.tokens_N[later] % (model.vocab_size - 1) + 1
    before, after = (adaptive_nats(model, split, lambda: train) for split in (val, changed))
    assert np.isfinite(before).all()
    np.testing.assert_allclose(after[:half], before[:half], rtol=1e-6)
    assert not np.allclose(after[half:], before[half:])


def right_and_wrong_member(n, vocab_size, scale):
    """Log-probabilities (n, 2, V), targets (n,) drawn from the first member, and its nats (n,)."""
    torch.manual_seed(0)
    log_probs = torch.log_softmax(scale * torch.randn(n, 2, vocab_size), dim=-1)
    targets = torch.distributions.Categorical(logits=log_probs[:, 0]).sample()
    return log_probs, targets, -log_probs[torch.arange(n), 0, targets].double().numpy()


def test_a_gate_learns_which_member_is_right():
    model = nonzero_model("auto")
    log_probs, targets, own = right_and_wrong_member(4000, model.vocab_size, 3)
    excess = GateLearner(model).read(log_probs, targets) - own
    assert excess[-1000:].mean() < 0.5 * excess[:1000].mean()


def test_fixed_share_is_the_average_over_all_sequences_of_experts():
    """Of three tokens and two experts, by enumeration: the expert is redrawn with probability 0.1."""
    prior, nats = np.array([0.75, 0.25]), np.array([[0.2, 1.5], [2.0, 0.1], [0.3, 0.4]])
    stays = 0.9 * np.eye(2) + 0.1 * prior
    expected = []
    for n in (1, 2, 3):
        paths = itertools.product(range(2), repeat=n)
        expected.append(
            sum(
                prior[path[0]]
                * math.prod(stays[a, b] for a, b in itertools.pairwise(path))
                * math.exp(-sum(nats[i, e] for i, e in enumerate(path)))
                for path in paths
            )
        )
    read = FixedShare(prior, 0.1).read(nats)
    np.testing.assert_allclose(np.cumsum(read), -np.log(expected), rtol=1e-12)


def test_a_gated_mixture_is_hardly_worse_than_its_best_member():
    model = nonzero_model("auto")
    log_probs, targets, own = right_and_wrong_member(500, model.vocab_size, 6)
    learner = GateLearner(model)
    nats = learner.read(log_probs, targets)
    assert nats.sum() < own.sum() + math.log(4) + 500 * -math.log1p(-SWITCHING)
    shares = learner.learned().shares
    assert shares is not None
    assert shares[1] > 0.9


def test_a_model_without_weights_to_train_is_refused():
    model = nonzero_model("mlp").requires_grad_(False)
    with pytest.raises(UserError, match="can't learn while it is scored"):
        adaptive_nats(model, splits("lines")[1], no_train)
