"""A gate that learns which members to trust while it reads."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.evaluation.distributions import nats_of
from makemore.models.base import MixtureModel
from makemore.types import Floats

LEARNING_RATE = 0.001
SEGMENT_TOKENS = 64
"""Maximum number of tokens between two steps."""


class GateLearner:
    """A copy of a mixture's gate, trained by Adam."""

    def __init__(self, model: MixtureModel) -> None:
        self.gate = copy.deepcopy(model.gates[0]).cpu().requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.gate.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))

    def read(self, log_probs: Tensor, targets: Tensor) -> Floats:
        """Nats (n,) of targets (n,) by the members' log-probabilities (n, K, V), each before the step that
        learns from it."""
        parts = zip(log_probs.split(SEGMENT_TOKENS), targets.split(SEGMENT_TOKENS), strict=True)
        return np.concatenate([self._read(*part) for part in parts])

    def _read(self, log_probs: Tensor, targets: Tensor) -> Floats:
        mixed = self.gate(log_probs)
        self.optimizer.zero_grad()
        F.nll_loss(mixed, targets).backward()
        self.optimizer.step()
        return nats_of(mixed.detach(), targets)
