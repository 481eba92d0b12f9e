"""Dynamic evaluation (Krause, Kahembwe, Murray & Renals 2018).

The model goes on learning from what it has been scored on: each segment is scored by the weights that all
segments before it have made, then the weights take a step. Steps are scaled by the size of gradients in
training (the paper's RMS rule), and weights decay back to where training left them. A score got this way
is another quantity than the plain one, and is reported apart.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from makemore.corpus.rows import Rows, cover, to_batch
from makemore.errors import UserError
from makemore.evaluation.scoring import Progress, context_rows, nats_of
from makemore.models.base import CountModel, LanguageModel, MixtureModel
from makemore.types import Split, State

SEGMENT = 64
"""Tokens scored between two steps, at least."""
STATISTICS = 200
"""Segments of train from which the size of gradients is taken."""


@dataclass(frozen=True)
class DynamicSettings:
    """How fast weights follow the text, and how fast they come back; chosen on val of tinyshakespeare."""

    lr: float = 0.0003
    decay: float = 0.002
    epsilon: float = 0.1
    """Added to the size of each weight's gradients, as a share of the mean size."""

    def __post_init__(self) -> None:
        if self.lr < 0 or not 0 <= self.decay <= 1:
            raise UserError(f"a rate of {self.lr:g} and a decay of {self.decay:g} make no dynamic evaluation")


def dynamic_nats(
    model: LanguageModel,
    split: Split,
    train: Split,
    settings: DynamicSettings | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Nats of every target of a split, (N,) float64; the model is left as it was.

    Raises UserError for a model without gradients, or one whose weights ran away.
    """
    if isinstance(model, CountModel | MixtureModel) or not any(p.requires_grad for p in model.parameters()):
        raise UserError("dynamic evaluation goes on training, and this model isn't trained by gradients")
    learner = copy.deepcopy(model).eval()
    for module in learner.modules():
        if isinstance(module, nn.RNNBase):  # cuDNN has gradients in training mode alone
            module.dropout = 0.0
            module.train()
    steps = _Steps(learner, train, settings or DynamicSettings(), stride)
    nats_N = np.full(len(split.tokens_N), np.nan)
    done = 0
    for index, nats in _segments(learner, split, stride):
        steps.take(nats.mean())
        nats_N[index] = nats.detach().cpu().double().numpy()
        done += len(index)
        if progress:
            progress(done, len(nats_N))
    bad = np.flatnonzero(~np.isfinite(nats_N))
    if len(bad):
        raise UserError(
            f"weights ran away by token {bad[0]} of {split.name}; give a rate below {steps.settings.lr:g}"
        )
    return nats_N


class _Steps:
    """Weights that follow a loss and come back to where they began."""

    def __init__(
        self, model: LanguageModel, train: Split, settings: DynamicSettings, stride: int | None
    ) -> None:
        self.settings = settings
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.began = [p.detach().clone() for p in self.weights]
        squares = [torch.zeros_like(p) for p in self.weights]
        segments = 0
        for _, nats in itertools.islice(_segments(model, train, stride), STATISTICS):
            for square, gradient in zip(squares, self._gradients(nats.mean()), strict=True):
                square += gradient**2
            segments += 1
        self.sizes = [(square / max(segments, 1)).sqrt() for square in squares]
        # Gradients are measured against a size that is nowhere nearly 0: weights that training never moved
        # would leap.
        mean = sum(float(size.sum()) for size in self.sizes) / sum(size.numel() for size in self.sizes)
        self.floor = settings.epsilon * mean
        # Weights that mattered more in training come back faster, never beyond where they began.
        self.pulls = [(settings.decay * size / max(mean, 1e-30)).clamp(max=1.0) for size in self.sizes]

    def _gradients(self, loss: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(loss, self.weights, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.weights, found, strict=True)]

    def take(self, loss: Tensor) -> None:
        """One step."""
        gradients = self._gradients(loss)
        lr = self.settings.lr
        columns = (self.weights, self.began, self.pulls, self.sizes, gradients)
        with torch.no_grad():
            for weight, begun, pull, size, gradient in zip(*columns, strict=True):
                weight.add_(pull * (begun - weight) - lr * gradient / (size + self.floor))


def _segments(model: LanguageModel, split: Split, stride: int | None) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Targets (n,) and their nats (n,), with their graph, in the order of the text."""
    carried = model.max_len is None and len(split.starts_D) == 1
    state: State | None = model.init_state(1, SEGMENT) if carried else None
    rows = _rows(model, split, stride)
    counted = rows.end - rows.count_from
    nth = (np.cumsum(counted) - counted) // SEGMENT
    for group in np.split(np.arange(len(nth)), np.flatnonzero(np.diff(nth)) + 1):
        part = rows.take(group)
        batch = to_batch(split, part, model.boundary_id)
        targets = batch.targets_BT.to(model.device)
        logits, state = model(batch.inputs_BT.to(model.device), state)
        state = None if state is None else tuple(tensor.detach() for tensor in state)
        index = part.begin[:, None] + np.arange(targets.shape[1])
        inside = (index >= part.count_from[:, None]) & (index < part.end[:, None])
        yield index[inside], nats_of(logits, targets)[torch.from_numpy(inside).to(model.device)]


def _rows(model: LanguageModel, split: Split, stride: int | None) -> Rows:
    """As in plain scoring, but no more than a segment at a time."""
    if model.max_len is None:
        whole = int((split.ends_D - split.starts_D).max())
        return cover(split, SEGMENT if len(split.starts_D) == 1 else whole, 0)
    if model.streams:
        return cover(split, SEGMENT + model.lead, model.lead)
    rows = context_rows(model, split, stride or min(SEGMENT, max(1, model.max_len // 2)))
    assert rows is not None
    return rows
