"""What every way of learning from a text while it is scored has in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from makemore.evaluation.distributions import Fold, log_probs
from makemore.evaluation.scoring import Progress
from makemore.models.base import LanguageModel
from makemore.types import Floats, Split

TrainSplit = Callable[[], Split]
"""Loads the training text, which only dynamic evaluation needs."""


class Reading(NamedTuple):
    """What comes of reading a text."""

    nats_N: Floats
    """Nats of each target under what the targets before it have taught."""
    model: LanguageModel | None
    """A copy of the model that has learned from the text; None for a mixture: call ``learn``."""


class Reader(ABC):
    """Reads texts with a trained model that learns while it reads, from the trained state for each text."""

    folds: Sequence[Fold] = ()
    """As in ``token_nats``, of the next text that is read."""

    def __init__(self, model: LanguageModel, stride: int | None = None) -> None:
        self.model, self.stride = model, stride

    def read(self, split: Split, progress: Progress | None = None) -> Reading:
        """Predict every target of a split once and learn from it; what one document teaches is kept for the
        next. Raises UserError if the model diverges."""
        reading = self._read(split, progress)
        reading.nats_N[split.lone_ends(self.model.boundary_id)] = math.log(self.model.vocab_size)
        return reading

    def learn(self, split: Split) -> LanguageModel:
        """A copy of the model that has learned from a text."""
        model = self.read(split).model
        assert model is not None
        return model

    def log_probs(self, split: Split) -> Iterator[Tensor]:
        """Yield the log-probabilities (n, V) of every target, in order, as the model is while it reads; by
        default, those of the frozen model."""
        return log_probs(self.model, split, self.stride)

    @abstractmethod
    def _read(self, split: Split, progress: Progress | None) -> Reading: ...
