"""A gate that learns which members to trust while it reads."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from makemore.evaluation.distributions import Fold, nats_of
from makemore.models.base import MixtureModel
from makemore.types import Floats

LEARNING_RATE = 0.002
SEGMENT_TOKENS = 16
"""Maximum number of tokens between two steps."""


class GateLearner:
    """A copy of a mixture's gate, trained by Adam; each of a text's ``folds`` begins with its own gate."""

    def __init__(self, model: MixtureModel, folds: Sequence[Fold] = ()) -> None:
        self.model, self.folds = model, list(folds) or [(sys.maxsize, 0)]
        self.position = 0
        self._begin_fold()

    def _begin_fold(self) -> None:
        self.end, number = self.folds.pop(0)
        self.gate = copy.deepcopy(self.model.gates[number]).cpu().requires_grad_(True)
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

    def _read(self, log_probs: Tensor, targets: Tensor) -> Floats:
        mixed = self.gate(log_probs)
        self.optimizer.zero_grad()
        F.nll_loss(mixed, targets).backward()
        self.optimizer.step()
        return nats_of(mixed.detach(), targets)
