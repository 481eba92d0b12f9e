"""Gates: an independent form in float64, and what they are fitted to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from makemore.models.mixture import Auto, AutoConfig, Gate
from makemore.sampling.decoders.gate import Mixer
from makemore.training.mixing.gating import _Examples, _fit


def distributions(n: int, members: int, vocab: int, seed: int = 0) -> torch.Tensor:
    """Random log-probabilities (n, members, vocab)."""
    logits = 2 * torch.randn(n, members, vocab, generator=torch.Generator().manual_seed(seed))
    return torch.log_softmax(logits, dim=-1)


def random_gate(members: int) -> Gate:
    torch.manual_seed(1)
    gate = Gate(members, 16)
    with torch.no_grad():
        for tensor in [*gate.parameters(), gate.mean]:
            tensor.add_(torch.randn_like(tensor))
        gate.scale.uniform_(0.5, 2)
    return gate.requires_grad_(False)


def test_a_gate_gives_the_distribution_of_its_formula():
    gate, z = random_gate(3), distributions(5, 3, 7)
    w = {name: tensor.double().numpy() for name, tensor in gate.state_dict().items()}
    for logits, result in zip(z.double().numpy(), gate(z).double().numpy(), strict=True):
        p = np.exp(logits)
        average = p.mean(axis=0)
        features = np.array([*(p * logits).sum(axis=1), *logits.max(axis=1), *(average * logits).sum(axis=1)])
        hidden = np.tanh(w["hidden.weight"] @ ((features - w["mean"]) * w["scale"]) + w["hidden.bias"])
        weights = np.log1p(np.exp(w["out.weight"] @ hidden + w["out.bias"]))
        product = np.exp(weights @ logits)
        np.testing.assert_allclose(np.exp(result), product / product.sum(), rtol=1e-5)


def test_a_new_gate_trusts_all_members_equally():
    z = distributions(4, 2, 6)
    expected = torch.log_softmax(z.mean(dim=1), dim=-1)
    torch.testing.assert_close(Gate(2, 16)(z).detach(), expected)


def test_a_token_that_a_member_excludes_is_finite_for_the_others():
    z = distributions(1, 2, 4)
    z[0, 0, 1] = -torch.inf
    mixed = random_gate(2)(z)
    assert torch.isfinite(mixed).all()
    torch.testing.assert_close(mixed.exp().sum(-1), torch.ones(1))


def test_shares_average_the_product_and_the_members():
    gate, z = random_gate(2), distributions(5, 2, 7)
    product = gate(z).exp()
    gate.shares = torch.tensor([0.5, 0.2, 0.3])
    expected = 0.5 * product + 0.2 * z[:, 0].exp() + 0.3 * z[:, 1].exp()
    torch.testing.assert_close(gate(z).exp(), expected)


@pytest.mark.parametrize("shares", [None, torch.tensor([0.5, 0.2, 0.3])])
def test_decoding_mixes_like_the_model(shares):
    model = Auto(AutoConfig(), 9, 0)
    model.gates[0] = random_gate(2)
    model.gates[0].shares = shares
    z = distributions(6, 2, 9)
    z[0, 0, 1] = -torch.inf
    z = torch.log_softmax(z, dim=-1)
    logits = torch.from_numpy(Mixer(model)(z.numpy()))
    torch.testing.assert_close(torch.log_softmax(logits, -1), model.mix(z), atol=1e-5, rtol=1e-5)


def fitted_weights(n: int) -> torch.Tensor:
    """Mean weights of a gate fitted on ``n`` tokens that the first of two members predicts well."""
    z = distributions(n, 2, 8, seed=n)
    targets = torch.distributions.Categorical(logits=z[:, 0]).sample()
    examples = _Examples(Gate(2, 16).features(z), z, targets)
    return _fit(examples).weights(examples.features).mean(0)


def test_a_gate_trusts_the_member_that_is_right_if_the_text_is_long_enough():
    torch.manual_seed(0)
    many, few = fitted_weights(20_000), fitted_weights(5)
    assert abs(many[0] - 1) < 0.1
    assert many[1] < 0.1
    torch.testing.assert_close(few, torch.full((2,), 0.5), atol=0.2, rtol=0)
