"""Dynamic evaluation: the model keeps learning while it is scored (Krause, Kahembwe, Murray & Renals 2018).

Each segment is scored by weights updated on all segments before it, then the weights take a step. Steps are
scaled by the size of gradients in training (the paper's RMS rule), and weights decay towards their trained
values. This is a different quantity from the plain score, and is reported separately.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from makemore.corpus.rows import Rows, eval_windows, to_batch
from makemore.errors import UserError
from makemore.evaluation.scoring import Progress, online_nats, target_nats
from makemore.evaluation.windows import eval_rows
from makemore.models.base import CountModel, LanguageModel, MixtureModel, OnlineModel
from makemore.types import Split, State

SEGMENT_TOKENS = 64
"""Minimum number of tokens scored between two steps."""
N_STATISTICS_SEGMENTS = 200
"""Number of train segments from which the RMS of gradients is estimated."""


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
                f"dynamic evaluation needs lr >= 0 and 0 <= decay <= 1, not {self.lr:g} and {self.decay:g}"
            )


def dynamic_nats(
    model: LanguageModel,
    split: Split,
    train: Split,
    settings: DynamicSettings | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Nats of every target of a split, (N,) float64; the model is left unchanged.

    Raises:
        UserError: the model isn't trained by gradients, or its weights diverged.
    """
    if isinstance(model, OnlineModel):
        if settings not in (None, DynamicSettings()):
            raise UserError(
                "--dynamic-lr is for gradients; this model learns by model.adaptive_lr, set in training"
            )
        return online_nats(model, split, "adaptive")
    if isinstance(model, CountModel | MixtureModel) or not any(p.requires_grad for p in model.parameters()):
        raise UserError("this model isn't trained by gradients; evaluate it without --dynamic")
    learner = copy.deepcopy(model).eval()
    for module in learner.modules():
        if isinstance(module, nn.RNNBase):  # cuDNN computes gradients only in training mode
            module.dropout = 0.0
            module.train()
    updater = _Updater(learner, train, settings or DynamicSettings(), stride)
    nats_N = np.full(len(split.tokens_N), np.nan)
    done = 0
    for index, nats in _segments(learner, split, stride):
        updater.step(nats.mean())
        nats_N[index] = nats.detach().cpu().double().numpy()
        done += len(index)
        if progress:
            progress(done, len(nats_N))
    bad = np.flatnonzero(~np.isfinite(nats_N))
    if len(bad):
        raise UserError(f"weights diverged by token {bad[0]} of {split.name}; lower --dynamic-lr")
    nats_N[split.lone_ends(model.boundary_id)] = math.log(model.vocab_size)  # as in ``target_metrics``
    return nats_N


class _Updater:
    """Updates weights by the paper's RMS rule, and decays them towards their initial values."""

    def __init__(
        self, model: LanguageModel, train: Split, settings: DynamicSettings, stride: int | None
    ) -> None:
        self.settings = settings
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.initial = [p.detach().clone() for p in self.weights]
        square_sums = [torch.zeros_like(p) for p in self.weights]
        n_segments = 0
        for _, nats in itertools.islice(_segments(model, train, stride), N_STATISTICS_SEGMENTS):
            for square_sum, gradient in zip(square_sums, self._gradients(nats.mean()), strict=True):
                square_sum += gradient**2
            n_segments += 1
        self.rms = [(square_sum / max(n_segments, 1)).sqrt() for square_sum in square_sums]
        # Without this floor, weights with almost no gradient in training would take huge steps.
        mean = sum(float(rms.sum()) for rms in self.rms) / sum(rms.numel() for rms in self.rms)
        self.floor = settings.epsilon * mean
        # Weights with larger gradients decay faster, never past their initial values.
        self.decays = [(settings.decay * rms / max(mean, 1e-30)).clamp(max=1.0) for rms in self.rms]

    def _gradients(self, loss: Tensor) -> list[Tensor]:
        grads = torch.autograd.grad(loss, self.weights, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.weights, grads, strict=True)]

    def step(self, loss: Tensor) -> None:
        gradients = self._gradients(loss)
        lr = self.settings.lr
        columns = (self.weights, self.initial, self.decays, self.rms, gradients)
        with torch.no_grad():
            for weight, initial, decay, rms, gradient in zip(*columns, strict=True):
                weight.add_(decay * (initial - weight) - lr * gradient / (rms + self.floor))


def _segments(model: LanguageModel, split: Split, stride: int | None) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Indices (n,) of targets and their nats (n,), with their graph, in text order."""
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
        yield index[is_scored], target_nats(logits, targets)[torch.from_numpy(is_scored).to(model.device)]


def _rows(model: LanguageModel, split: Split, stride: int | None) -> Rows:
    """Rows as in plain scoring, but about one segment long."""
    if model.max_len is None:
        longest = int((split.ends_D - split.starts_D).max())
        return eval_windows(split, SEGMENT_TOKENS if len(split.starts_D) == 1 else longest, 0)
    if model.supports_streaming:
        return eval_windows(split, SEGMENT_TOKENS + model.context_prefix, model.context_prefix)
    rows = eval_rows(model, split, stride or min(SEGMENT_TOKENS, max(1, model.max_len // 2)))
    assert rows is not None
    return rows
