"""Fit the gates of a mixture on held-out text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from makemore.evaluation.distributions import align, halves, n_fitted_tokens, nats_of
from makemore.evaluation.distributions import log_probs as member_log_probs
from makemore.models.mixture import Mixture
from makemore.models.mixture.gate import MIN_LOG_PROB, UNITS, Gate, mix
from makemore.runtime.optimizers import Adam
from makemore.types import Split

STEPS, BATCH_TOKENS, LEARNING_RATE = 500, 512, 0.01
PENALTY = 100.0
"""Regularisation, in nats over the whole text per squared distance from equal, constant weights: with little
text, the weights stay nearly equal."""


class _Examples(NamedTuple):
    features: Tensor
    log_probs: Tensor
    targets: Tensor

    def select(self, index: slice | Tensor) -> _Examples:
        return _Examples(*(tensor[index] for tensor in self))


def fit_gates(mixture: Mixture, val: Split) -> tuple[np.ndarray, np.ndarray]:
    """Fit the gates of a mixture, in eval mode, by Adam: minimise nats per token of all of val, of its second
    half, and of its first half; see ``halves``. The same members and text give the same gates.

    Returns:
        Mean weight of each member, (K,) float64, as a share of the sum of all weights, and nats per token of
        each member, (K,) float64, both on the text that the gates were fitted on.
    """
    members, vocab_size = mixture.members, mixture.vocab_size
    n_fitted = n_fitted_tokens(val, vocab_size)
    pieces = []
    for begin, log_probs, targets, _ in align([member_log_probs(m, val) for m in members], val):
        pieces.append((log_probs[: n_fitted - begin].clamp(min=MIN_LOG_PROB), targets[: n_fitted - begin]))
        if begin + len(targets) >= n_fitted:
            break
    log_probs, targets = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    examples = _Examples(Gate(len(members), UNITS).features(log_probs), log_probs, targets)
    (middle, _), _ = halves(val, vocab_size)
    parts = (slice(None), slice(middle, None), slice(0, middle))
    with _one_thread():
        gates = [_fit(examples.select(part)) for part in parts]
    mixture.gates = nn.ModuleList(gates)
    with torch.no_grad():
        weights = gates[0].weights(examples.features)
    mean_weights_K = (weights / weights.sum(-1, keepdim=True)).mean(0).double().numpy()
    return mean_weights_K, nats_of(log_probs, targets).mean(0)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread: the matrices are too small to share."""
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n)


def _fit(examples: _Examples) -> Gate:
    generator = torch.Generator().manual_seed(0)
    gate = Gate(examples.log_probs.shape[1], UNITS)
    torch.nn.init.normal_(gate.hidden.weight, std=gate.hidden.in_features**-0.5, generator=generator)
    torch.nn.init.zeros_(gate.hidden.bias)
    equal = gate.out.bias.detach().clone()
    n = len(examples.targets)
    if n == 0:
        return gate.requires_grad_(False)
    if n > 1:
        gate.mean.copy_(examples.features.mean(0))
        gate.scale.copy_(1 / examples.features.std(0).clamp(min=1e-3))
    optimizer = Adam(gate.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / STEPS)
        index = torch.randint(n, (min(n, BATCH_TOKENS),), generator=generator)
        batch = examples.select(index) if n > BATCH_TOKENS else examples
        logits = mix(batch.log_probs, gate.weights(batch.features))
        loss = torch.nn.functional.cross_entropy(logits, batch.targets)
        loss = loss + PENALTY / n * _distance(gate, equal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return gate.requires_grad_(False)


def _distance(gate: Gate, equal: Tensor) -> Tensor:
    """Squared distance from equal, constant weights."""
    parts = (gate.hidden.weight, gate.out.weight, gate.out.bias - equal)
    return torch.stack([part.square().sum() for part in parts]).sum()
