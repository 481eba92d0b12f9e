"""A gate that learns which members to trust while it reads."""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.evaluation.distributions import nats_of
from makemore.models.base import MixtureModel
from makemore.models.mixture.gate import Gate
from makemore.runtime.optimizers import Adam
from makemore.types import Floats

LEARNING_RATE = 0.002
SEGMENT_TOKENS = 16
"""Maximum number of tokens between two steps."""
SWITCHING = 0.002
"""Probability that the best expert changes at a token."""


class FixedShare:
    """Averages the probabilities of E experts, with weights that are updated at each token by Bayes' rule.

    Fixed share (Herbster & Warmuth 1998): at each token, a part of all weight returns to the prior, so that
    the weights can follow a text whose best expert changes.
    """

    def __init__(self, prior_E: Floats, switching: float) -> None:
        """``prior_E``: initial weights, which sum to 1; ``switching``: the part that returns to them."""
        self.prior_E, self.switching = prior_E, switching
        self.weights_E = prior_E

    def read(self, nats_NE: Floats) -> Floats:
        """Nats (N,) of the next tokens by the average, each before its update; nats_NE: by each expert."""
        nats_N = np.empty(len(nats_NE))
        for i, row_E in enumerate(nats_NE):
            min_nats = row_E.min()
            joint_E = self.weights_E * np.exp(min_nats - row_E)
            total = joint_E.sum()
            nats_N[i] = min_nats - np.log(total)
            self.weights_E = (1 - self.switching) * joint_E / total + self.switching * self.prior_E
        return nats_N


class GateLearner:
    """A copy of a mixture's gate, trained by Adam; each gate of a text's folds begins as it was fitted.

    The prediction is a ``FixedShare`` of the gate's product and each member alone, because the gate's steps
    are too slow for a text that one member learns much faster than the others.
    """

    def __init__(self, model: MixtureModel) -> None:
        self.model = model
        self._begin(0)

    def _begin(self, number: int) -> None:
        self.number = number
        self.gate = cast(Gate, copy.deepcopy(self.model.gates[number])).cpu().requires_grad_(True)
        n = len(self.model.members)
        self.experts = FixedShare(np.array([0.5] + [0.5 / n] * n), SWITCHING)
        self.optimizer = Adam(self.gate.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))

    def read(self, log_probs: Tensor, targets: Tensor, gate: int = 0) -> Floats:
        """Nats (n,) of the next targets (n,), before learning from them, by the members' log-probabilities
        (n, K, V); another number of ``gate`` than before begins with that gate."""
        if gate != self.number:
            self._begin(gate)
        parts = zip(log_probs.split(SEGMENT_TOKENS), targets.split(SEGMENT_TOKENS), strict=True)
        return np.concatenate([self._read(*part) for part in parts])

    def learned(self) -> Gate:
        """A copy of the gate as trained so far, with the current weights of the product and the members."""
        gate = copy.deepcopy(self.gate).requires_grad_(False)
        gate.shares = torch.from_numpy(self.experts.weights_E).float()
        return gate

    def _read(self, log_probs: Tensor, targets: Tensor) -> Floats:
        product = self.gate.product(log_probs)
        self.optimizer.zero_grad()
        F.nll_loss(product, targets).backward()
        self.optimizer.step()
        nats_NK, nats_N = nats_of(log_probs, targets), nats_of(product.detach(), targets)
        return self.experts.read(np.column_stack([nats_N, nats_NK]))
