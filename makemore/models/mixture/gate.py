"""A gate: how much each member of a mixture is trusted, given what the members predict.

The members' distributions are multiplied, each raised to its weight, and normalised (a product of experts,
Hinton 2002; logistic mixing, Mahoney 2005). The weights are computed, token by token, from how certain each
member is and how much it agrees with the others (a gated mixture of experts, Jacobs et al. 1991).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIN_LOG_PROB = -30.0
"""Lower bound of log-probabilities, so that a token impossible for one member has a finite logit."""

UNITS = 16
"""Hidden units of a gate, by default."""


class Gate(nn.Module):
    """Mixes K log-probabilities over a vocabulary of V tokens."""

    def __init__(self, n_members: int, units: int) -> None:
        super().__init__()
        n_features = 3 * n_members
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))
        self.register_buffer("shares", None, persistent=False)
        self.mean: Tensor
        self.scale: Tensor
        self.shares: Tensor | None
        """Weights (1 + K,) that average the product and each member; None: the product alone."""
        self.hidden = nn.Linear(n_features, units)
        self.out = nn.Linear(units, n_members)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, math.log(math.expm1(1 / n_members)))  # softplus gives 1 / K

    def features(self, log_probs: Tensor) -> Tensor:
        """(…, 3 K) of log-probabilities (…, K, V): each member's entropy, its highest log-probability, and
        the cross-entropy of the members' average under it."""
        probs = log_probs.exp()
        average = probs.mean(dim=-2, keepdim=True)
        columns = ((probs * log_probs).sum(-1), log_probs.amax(-1), (average * log_probs).sum(-1))
        return torch.cat(columns, dim=-1)

    def weights(self, features: Tensor) -> Tensor:
        """Weights (…, K), positive, of features (…, 3 K)."""
        hidden = torch.tanh(self.hidden((features - self.mean) * self.scale))
        return F.softplus(self.out(hidden))

    def product(self, log_probs: Tensor) -> Tensor:
        """The weighted product of the members' distributions: (…, K, V) to (…, V) log-probabilities."""
        log_probs = log_probs.clamp(min=MIN_LOG_PROB)
        return torch.log_softmax(mix(log_probs, self.weights(self.features(log_probs))), dim=-1)

    def forward(self, log_probs: Tensor) -> Tensor:
        """The mixture of the members' distributions: (…, K, V) to (…, V) log-probabilities."""
        product = self.product(log_probs)
        if self.shares is None:
            return product
        experts = torch.cat([product.unsqueeze(-2), log_probs], dim=-2)
        return torch.logsumexp(experts + self.shares.log().unsqueeze(-1), dim=-2)


def mix(log_probs: Tensor, weights: Tensor) -> Tensor:
    """Logits (…, V): the weighted sum of log-probabilities (…, K, V) by weights (…, K)."""
    return torch.matmul(weights.unsqueeze(-2), log_probs).squeeze(-2)
