"""Token choice against its definitions, and decoding against recomputation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from makemore.errors import UserError
from makemore.models import MODELS
from makemore.sampling import Noise, SampleParams, choose, distribution, generate
from tests.conformance.prepared import VOCAB, prepared


def logits(rows: int = 3, vocab: int = 7) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0))


def test_plain_distribution_is_the_softmax():
    torch.testing.assert_close(distribution(logits(), SampleParams()), logits().double().softmax(-1))


def test_temperature_divides_logits():
    expected = (logits().double() / 0.5).softmax(-1)
    torch.testing.assert_close(distribution(logits(), SampleParams(temperature=0.5)), expected)


@pytest.mark.parametrize("k", [1, 3, 7, 50])
def test_top_k_keeps_the_k_likeliest(k):
    p = distribution(logits(), SampleParams(top_k=k))
    assert (p > 0).sum(-1).tolist() == [min(k, 7)] * 3
    torch.testing.assert_close(p.sum(-1), torch.ones(3, dtype=torch.float64))


def test_top_p_keeps_the_smallest_set_of_that_mass():
    full = logits().double().softmax(-1)
    p = distribution(logits(), SampleParams(top_p=0.6))
    for row in range(3):
        order = full[row].argsort(descending=True)
        count = int((full[row][order].cumsum(0) < 0.6).sum()) + 1
        assert set(p[row].nonzero()[:, 0].tolist()) == set(order[:count].tolist())


def test_min_p_drops_what_is_far_below_the_likeliest():
    full = logits().double().softmax(-1)
    p = distribution(logits(), SampleParams(min_p=0.3))
    assert torch.equal(p > 0, full >= 0.3 * full.amax(-1, keepdim=True))


def test_greedy_and_temperature_zero_take_the_likeliest():
    for params in (SampleParams(greedy=True), SampleParams(temperature=0.0), SampleParams(top_k=1)):
        picked = choose(logits(), params, torch.tensor([0.1, 0.5, 0.99]))
        assert picked.tolist() == logits().argmax(-1).tolist()


def test_draws_have_the_distributions_frequencies():
    params = SampleParams(temperature=1.3, top_p=0.9)
    p = distribution(logits(1), params)[0]
    n = 20000
    draws = choose(logits(1).expand(n, -1), params, torch.from_numpy((np.arange(n) + 0.5) / n))
    frequencies = torch.bincount(draws, minlength=7) / n
    torch.testing.assert_close(frequencies.double(), p, atol=2 / n, rtol=0)
    assert p[draws].min() > 0


def test_impossible_tokens_are_never_drawn():
    row = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    u = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 1e-12], dtype=torch.float64)
    assert set(choose(row.expand(5, -1), SampleParams(), u).tolist()) == {1, 3}


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 2.0},
        {"min_p": -0.1},
    ],
)
def test_values_without_meaning_are_refused(settings):
    with pytest.raises(UserError, match="must be"):
        SampleParams(**settings)


def test_noise_of_a_sample_is_its_own():
    many, one = Noise(5, range(4)), Noise(5, range(2, 3))
    for _ in range(300):  # past the end of a block
        assert many.next()[2] == one.next()[0]
    many.keep(np.array([2]))
    assert many.next()[0] == one.next()[0]


@pytest.mark.parametrize("name", list(MODELS))
def test_greedy_with_state_is_greedy_by_recomputation(name):
    model = prepared(name)
    context = [0, 3, 1]
    ids = [int(i[0]) for i in generate(model, torch.tensor([context]), 60, SampleParams(greedy=True))]
    limit = model.max_len if not model.streams else None
    for token in ids[: limit - 4 if limit else None]:
        with torch.no_grad():
            row = model(torch.tensor([context]))[0][0, -1]
        assert row[token] >= row.max() - 1e-4  # ties may fall either way
        context.append(token)


def test_text_goes_on_beyond_the_context():
    kind = MODELS.get("transformer")
    torch.manual_seed(0)
    model = kind(kind.Config(block_size=8, n_layer=1, n_embd=32), VOCAB, 0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    prompt = torch.randint(1, VOCAB, (2, 20))
    out = np.stack(list(generate(model, prompt, 50, SampleParams(), seed=1)))
    assert out.shape == (50, 2)
    # What the model sees is always the end of the text, at least half a context of it.
    whole = np.concatenate([prompt[0].numpy(), out[:, 0]])
    greedy = [int(i[0]) for i in generate(model, torch.from_numpy(whole)[None], 1, SampleParams(greedy=True))]
    with torch.no_grad():
        assert greedy[0] == int(model(torch.from_numpy(whole[-4:])[None])[0][0, -1].argmax())


def test_rows_that_ended_leave_the_batch():
    model = prepared("lstm")
    prompt = torch.zeros(6, 1, dtype=torch.int64)
    steps = np.stack(list(generate(model, prompt, 200, SampleParams(), stop_id=0, seed=2)))
    for row in range(6):
        column = steps[:, row]
        end = int(np.argmax(column == 0)) if (column == 0).any() else len(column)
        assert (column[:end] > 0).all()
        assert (column[end + 1 :] == -1).all()
        alone = [int(i[0]) for i in generate(model, prompt[:1], 200, SampleParams(), 0, 2, first_sample=row)]
        assert alone == column[: end + 1].tolist()
