"""Dynamic evaluation: weights are trained while the model is scored (Krause, Kahembwe, Murray & Renals 2018).

Each segment is scored by weights updated on all segments before it, then the weights take a step. Steps are
scaled by the size of gradients in training (the paper's RMS rule), and weights decay towards their trained
values.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from makemore.corpus.rows import Rows, eval_windows, to_batch
from makemore.errors import UserError
from makemore.evaluation.adaptive.base import Reader, Reading
from makemore.evaluation.scoring import Progress
from makemore.evaluation.windows import eval_rows
from makemore.models.base import LanguageModel
from makemore.types import IGNORE_INDEX, Split, State

SEGMENT_TOKENS = 64
"""Approximate number of tokens between two steps."""
N_STATISTICS_SEGMENTS = 200
"""Number of train segments from which the RMS of gradients is estimated."""
MAX_NATS = 1e5
"""A token's loss at which the weights are said to have diverged, though they may still be finite."""


@dataclass(frozen=True)
class DynamicSettings:
    """Learning rate, and decay towards the trained weights; defaults chosen on val of tinyshakespeare."""

    lr: float = 0.0003
    decay: float = 0.002
    epsilon: float = 0.1
    """Added to the RMS of each weight's gradients, as a fraction of the mean RMS."""

    def __post_init__(self) -> None:
        if self.lr < 0 or not 0 <= self.decay <= 1:
            raise UserError(
                f"--adaptive needs lr >= 0 and 0 <= decay <= 1, not {self.lr:g} and {self.decay:g}"
            )


class DynamicEvaluation(Reader):
    """Updates a copy of the weights by the paper's RMS rule, and decays them towards their trained values."""

    def __init__(
        self, model: LanguageModel, train: Split, settings: DynamicSettings, stride: int | None
    ) -> None:
        super().__init__(model, stride)
        self.settings = settings
        learner = _copy(model)
        weights = _weights(learner)
        square_sums = [torch.zeros_like(p) for p in weights]
        n_segments = 0
        for segment in itertools.islice(_segments(learner, train, stride), N_STATISTICS_SEGMENTS):
            gradients = _gradients(segment.nats.mean(), weights)
            for square_sum, gradient in zip(square_sums, gradients, strict=True):
                square_sum += gradient**2
            n_segments += 1
        self.rms = [(square_sum / max(n_segments, 1)).sqrt() for square_sum in square_sums]
        # Without this floor, weights with almost no gradient in training would take huge steps.
        mean = sum(float(rms.sum()) for rms in self.rms) / sum(rms.numel() for rms in self.rms)
        self.floor = settings.epsilon * mean
        # Weights with larger gradients decay faster, never past their trained values.
        self.decays = [(settings.decay * rms / max(mean, 1e-30)).clamp(max=1.0) for rms in self.rms]

    def _read(self, split: Split, progress: Progress | None) -> Reading:
        learner, nats_N = _copy(self.model), np.full(len(split.tokens_N), np.nan)
        n_done = 0
        for segment in _segments(learner, split, self.stride):
            nats = segment.nats
            self._step(learner, nats.mean())
            nats_N[segment.at] = nats.detach().cpu().double().numpy()
            n_done += len(nats)
            if progress:
                progress(n_done, len(nats_N))
        bad = np.flatnonzero(~(nats_N < MAX_NATS))
        if len(bad):
            raise UserError(f"weights diverged by token {bad[0]} of {split.name}; lower --adaptive-lr")
        return Reading(nats_N, learner.eval())

    def log_probs(self, split: Split) -> Iterator[Tensor]:
        learner = _copy(self.model)
        for segment in _segments(learner, split, self.stride):
            yield segment.logits.detach().float().log_softmax(dim=-1).cpu()
            self._step(learner, segment.nats.mean())

    def _step(self, learner: LanguageModel, loss: Tensor) -> None:
        weights, lr = _weights(learner), self.settings.lr
        columns = (weights, _weights(self.model), self.decays, self.rms, _gradients(loss, weights))
        with torch.no_grad():
            for weight, trained, decay, rms, gradient in zip(*columns, strict=True):
                weight.add_(decay * (trained - weight) - lr * gradient / (rms + self.floor))


def _copy(model: LanguageModel) -> LanguageModel:
    learner = copy.deepcopy(model).eval()
    for module in learner.modules():
        if isinstance(module, nn.RNNBase):  # cuDNN computes gradients only in training mode
            module.dropout = 0.0
            module.train()
    return learner


def _weights(model: LanguageModel) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _gradients(loss: Tensor, weights: list[nn.Parameter]) -> list[Tensor]:
    grads = torch.autograd.grad(loss, weights, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(weights, grads, strict=True)]


class _Segment(NamedTuple):
    """Consecutive targets that are predicted by the same weights."""

    at: np.ndarray
    """(n,) int64."""
    logits: Tensor
    """(n, V), with their graph."""
    targets: Tensor
    """(n,) int64; IGNORE_INDEX for the end of a line without a known character."""

    @property
    def nats(self) -> Tensor:
        """(n,), with their graph."""
        return F.cross_entropy(self.logits.float(), self.targets, ignore_index=IGNORE_INDEX, reduction="none")


def _segments(model: LanguageModel, split: Split, stride: int | None) -> Iterator[_Segment]:
    """Yield the segments of a split, in text order."""
    carried_state = model.max_len is None and len(split.starts_D) == 1
    state: State | None = model.init_state(1, SEGMENT_TOKENS) if carried_state else None
    rows = _rows(model, split, stride)
    n_scored = rows.end - rows.score_from
    segment_R = (np.cumsum(n_scored) - n_scored) // SEGMENT_TOKENS
    for group in np.split(np.arange(len(segment_R)), np.flatnonzero(np.diff(segment_R)) + 1):
        segment = rows.select(group)
        batch = to_batch(split, segment, model.boundary_id)
        targets = batch.targets_BT.to(model.device)
        logits, state = model(batch.inputs_BT.to(model.device), state)
        state = None if state is None else tuple(tensor.detach() for tensor in state)
        index = segment.begin[:, None] + np.arange(targets.shape[1])
        is_scored = (index >= segment.score_from[:, None]) & (index < segment.end[:, None])
        mask = torch.from_numpy(is_scored).to(model.device)
        yield _Segment(index[is_scored], logits[mask], targets[mask])


def _rows(model: LanguageModel, split: Split, stride: int | None) -> Rows:
    """Rows as in frozen scoring, but about one segment long."""
    if model.max_len is None:
        longest = int((split.ends_D - split.starts_D).max())
        return eval_windows(split, SEGMENT_TOKENS if len(split.starts_D) == 1 else longest, 0)
    if model.supports_streaming:
        return eval_windows(split, SEGMENT_TOKENS + model.context_prefix, model.context_prefix)
    rows = eval_rows(model, split, stride or min(SEGMENT_TOKENS, max(1, model.max_len // 2)))
    assert rows is not None
    return rows
