"""How each family of models learns from a text while it is scored.

A model that is registered later learns like its base class.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from makemore.errors import UserError
from makemore.evaluation.adaptive.base import Reader, Reading, TrainSplit
from makemore.evaluation.adaptive.dynamic import DynamicEvaluation, DynamicSettings
from makemore.evaluation.adaptive.gate import GateLearner
from makemore.evaluation.adaptive.ngram_cache import CachedModel, NgramCache
from makemore.evaluation.distributions import align
from makemore.evaluation.scoring import Progress, mix_nats, token_nats
from makemore.evaluation.windows import require_numbers
from makemore.models.base import CountModel, LanguageModel, MixtureModel, OnlineModel
from makemore.types import Floats, Split


class OnlineReader(Reader):
    """Goes on learning as in training."""

    model: OnlineModel

    def _read(self, split: Split, progress: Progress | None) -> Reading:
        learner, nats_N = self.model.learn(split.tokens_N, split.starts_D, "adaptive")
        return Reading(nats_N, learner)

    def log_probs(self, split: Split) -> Iterator[Tensor]:
        return map(torch.from_numpy, self.model.predict(split.tokens_N, split.starts_D))


class CountReader(Reader):
    """Has a cache of n-grams over the frozen counts."""

    def _read(self, split: Split, progress: Progress | None) -> Reading:
        cache = NgramCache(split, self.model.boundary_id)
        nats_N = cache.score(token_nats(self.model, split, self.stride, progress))
        return Reading(nats_N, CachedModel(self.model, cache))


class MixtureReader(Reader):
    """Each member learns by itself, and so does a gate; constant weights stay."""

    model: MixtureModel

    def __init__(self, model: MixtureModel, train: TrainSplit, stride: int | None) -> None:
        super().__init__(model, stride)
        self.readers = [make_reader(member, train, stride=stride) for member in model.members]

    def _read(self, split: Split, progress: Progress | None) -> Reading:
        if self.model.is_gated:
            return Reading(self._gated_nats(split, progress, GateLearner(self.model)), None)
        nats_KN = np.stack([reader.read(split, progress).nats_N for reader in self.readers])
        return Reading(mix_nats(nats_KN, self.model.weights.cpu().numpy()), None)

    def learn(self, split: Split) -> LanguageModel:
        members = [reader.learn(split) for reader in self.readers]
        if not self.model.is_gated:
            return self.model.with_members(members)
        learner = GateLearner(self.model)
        self._gated_nats(split, None, learner)
        return self.model.with_members(members, learner.learned())

    def _gated_nats(self, split: Split, progress: Progress | None, learner: GateLearner) -> Floats:
        nats_N = np.empty(len(split.tokens_N))
        pieces = align([reader.log_probs(split) for reader in self.readers], split, self.folds)
        for begin, log_probs, targets, gate in pieces:
            nats_N[begin : begin + len(targets)] = learner.read(log_probs, targets, gate)
            if progress:
                progress(begin + len(targets), len(nats_N))
        require_numbers(nats_N, split)
        return nats_N


def make_reader(
    model: LanguageModel,
    train: TrainSplit,
    settings: DynamicSettings | None = None,
    stride: int | None = None,
) -> Reader:
    """A reader of texts with a model, which stays unchanged.

    Args:
        train: loads the training text, by which dynamic evaluation scales its steps.
        settings: of dynamic evaluation.
        stride: step between windows in tokens (default: half the context; dynamic evaluation: at most 64).

    Raises:
        UserError: the model can't learn while it is scored, or not with these settings.
    """
    if isinstance(model, MixtureModel):
        _require_no(settings, "each member of a mixture learns at its default rate")
        return MixtureReader(model, train, stride)
    if isinstance(model, OnlineModel):
        _require_no(settings, "this model learns by model.adaptive_lr, set in training")
        return OnlineReader(model, stride)
    if isinstance(model, CountModel):
        _require_no(settings, "this model learns by counting")
        return CountReader(model, stride)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("this model can't learn while it is scored; leave out --adaptive")
    return DynamicEvaluation(model, train(), settings or DynamicSettings(), stride)


def _require_no(settings: DynamicSettings | None, reason: str) -> None:
    if settings is not None:
        raise UserError(f"--adaptive-lr is for gradients; {reason}")
