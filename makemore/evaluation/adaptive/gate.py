"""A gate that learns which members to trust while it reads."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.evaluation.distributions import Fold, nats_of
from makemore.models.base import MixtureModel
from makemore.models.mixture.gate import Gate
from makemore.types import Floats

LEARNING_RATE = 0.002
SEGMENT_TOKENS = 16
"""Maximum number of tokens between two steps."""
SWITCHING = 0.002
"""Probability, at each token, that the product or member that is right may change."""


class FixedShare:
    """Which of several experts is right, learned token by token (Herbster & Warmuth 1998): at most
    -ln(prior) nats worse than the best one, and little worse than the best sequence of a few."""

    def __init__(self, prior_E: Floats, switching: float) -> None:
        """``prior_E``: initial probability of each expert; ``switching``: the probability of a change."""
        self.prior_E, self.switching = prior_E, switching
        self.probs_E = prior_E.copy()

    def read(self, nats_NE: Floats) -> Floats:
        """Nats (N,) of tokens by the average of the experts, before learning from each token."""
        nats_N = np.empty(len(nats_NE))
        for i, row_E in enumerate(nats_NE):
            least = row_E.min()
            weighted_E = self.probs_E * np.exp(least - row_E)
            total = weighted_E.sum()
            nats_N[i] = least - np.log(total)
            self.probs_E = (1 - self.switching) * weighted_E / total + self.switching * self.prior_E
        return nats_N


class GateLearner:
    """A copy of a mixture's gate, trained by Adam; each of a text's ``folds`` begins with its own gate.

    Its product is one expert of a ``FixedShare``, and each member alone another: where one member learns a
    text much faster than the others, the gate's steps alone follow too slowly.
    """

    def __init__(self, model: MixtureModel, folds: Sequence[Fold] = ()) -> None:
        self.model, self.folds = model, list(folds) or [(sys.maxsize, 0)]
        self.position = 0
        self._begin_fold()

    def _begin_fold(self) -> None:
        self.end, number = self.folds.pop(0)
        self.gate = cast(Gate, copy.deepcopy(self.model.gates[number])).cpu().requires_grad_(True)
        n = len(self.model.members)
        self.experts = FixedShare(np.array([0.5] + [0.5 / n] * n), SWITCHING)
        self.optimizer = torch.optim.Adam(self.gate.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))

    def read(self, log_probs: Tensor, targets: Tensor) -> Floats:
        """Nats (n,) of the next targets (n,), before learning from them, by the members' log-probabilities
        (n, K, V)."""
        begin, nats = 0, []
        while begin < len(targets):
            if self.position >= self.end:
                self._begin_fold()
            part = slice(begin, begin + min(SEGMENT_TOKENS, self.end - self.position))
            nats.append(self._read(log_probs[part], targets[part]))
            begin += len(nats[-1])
            self.position += len(nats[-1])
        return np.concatenate(nats)

    def learned(self) -> Gate:
        """The gate as it is now, with what is known of which expert is right."""
        gate = copy.deepcopy(self.gate).requires_grad_(False)
        gate.shares = torch.from_numpy(self.experts.probs_E).float()
        return gate

    def _read(self, log_probs: Tensor, targets: Tensor) -> Floats:
        product = self.gate.product(log_probs)
        self.optimizer.zero_grad()
        F.nll_loss(product, targets).backward()
        self.optimizer.step()
        nats_NK, nats_N = nats_of(log_probs, targets), nats_of(product.detach(), targets)
        return self.experts.read(np.column_stack([nats_N, nats_NK]))
