"""A cache of n-grams over a frozen model (Kuhn & De Mori 1990, "A cache-based natural language model for
speech recognition").

What has been read of a text is counted. If x was c of the n tokens that have followed the last k tokens so
far, and d of these were different, then

    p_k(x) = (c + d p_j(x)) / (n + d)

where j is the next shorter context (Witten & Bell 1991, "The zero-frequency problem") and p_0 the frozen
probability. The cache's prediction p_K, of the longest context that has been read, and the frozen one are
interpolated: w p_K + (1 - w) p_0. For each K, w is its posterior mean, from equal probabilities on a grid
from 0 to 1; so for each K a useless cache costs at most as much as choosing from the grid, 2.2 nats.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from makemore.models.base import LanguageModel
from makemore.types import Floats, Ints, Split, State

CONTEXTS = (1, 2, 3, 4, 6, 9, 12, 16)
"""Lengths of the cache's contexts in tokens."""
GRID = np.linspace(0, 1, 9)
"""Values of w, equally probable at first."""
CHUNK = 1 << 16
ABSENT = -1


class NgramCache:
    """What has been read of a text, in documents that are read in order."""

    def __init__(self, split: Split, boundary_id: int) -> None:
        self.tokens_N = split.tokens_N.astype(np.int64)
        self.boundary_id = boundary_id
        self._start_N = np.repeat(split.starts_D, split.ends_D - split.starts_D)
        self.evidence_KG = np.zeros((max(CONTEXTS) + 1, len(GRID)))
        """Log-likelihood of w, by the longest context K that had been read."""

    def score(self, frozen_nats_N: Floats) -> Floats:
        """Nats (N,) of every target, from its nats under the frozen model."""
        frozen_N = np.exp(-frozen_nats_N)
        p_N, longest_N = frozen_N.copy(), np.zeros(len(frozen_N), np.int64)
        for k, counts in self._counts_so_far():
            p_N[counts.at] = (counts.c + counts.d * p_N[counts.at]) / (counts.n + counts.d)
            longest_N[counts.at] = k
        for k in CONTEXTS:
            index = np.flatnonzero(longest_N == k)
            for i in range(0, len(index), CHUNK):
                at = index[i : i + CHUNK]
                p_N[at] = self._learn_weight(k, p_N[at], frozen_N[at])
        with np.errstate(divide="ignore"):  # the frozen probability may be 0
            return -np.log(p_N)

    def _learn_weight(self, k: int, cache_N: Floats, frozen_N: Floats) -> Floats:
        """Interpolated probabilities (N,); adds them to the evidence for w."""
        p_NG = GRID * cache_N[:, None] + (1 - GRID) * frozen_N[:, None]
        logs_NG = np.log(np.maximum(p_NG, 1e-300))
        so_far_NG = self.evidence_KG[k] + np.cumsum(logs_NG, axis=0)
        w_N = _posterior_mean(np.concatenate([self.evidence_KG[k : k + 1], so_far_NG[:-1]]))
        self.evidence_KG[k] = so_far_NG[-1]
        return w_N * cache_N + (1 - w_N) * frozen_N

    def previous(self, index_N: Ints, k: int) -> Ints:
        """The tokens k before targets, (N,): the boundary before a document, ABSENT before that."""
        distance_N = index_N - k - self._start_N[index_N]
        inside_N = np.where(distance_N == -1, self.boundary_id, self.tokens_N[np.maximum(index_N - k, 0)])
        return np.where(distance_N < -1, ABSENT, inside_N)

    def _counts_so_far(self) -> Iterator[tuple[int, _Counts]]:
        """Counts before each target in its contexts that have been read, for each length."""
        index_N = np.arange(len(self.tokens_N))
        context_N = np.zeros(len(index_N), np.int64)
        vocab_size = int(self.tokens_N.max(initial=self.boundary_id)) + 1
        for k in range(1, max(CONTEXTS) + 1):
            token_N = self.previous(index_N, k)
            context_N = np.unique(context_N * vocab_size + token_N, return_inverse=True)[1]
            # A context that occurs once is never looked up with success, nor are longer ones.
            is_used = (token_N != ABSENT) & (np.bincount(context_N)[context_N] > 1)
            index_N, context_N = index_N[is_used], context_N[is_used]
            if not len(index_N):
                return
            if k in CONTEXTS:
                c_N = _earlier(context_N * vocab_size + self.tokens_N[index_N])
                n_N, d_N = _earlier(context_N), _earlier(context_N, c_N == 0)
                seen = n_N > 0
                yield k, _Counts(index_N[seen], c_N[seen], n_N[seen], d_N[seen])

    def distribution(self, context: Ints, frozen_V: Floats) -> Floats:
        """Probabilities (V,) of the next token after a context (newest token first; ABSENT where it ends)."""
        index_N, cache_V, longest = np.arange(len(self.tokens_N)), frozen_V, 0
        for k, token in enumerate(context[: max(CONTEXTS)].tolist(), start=1):
            index_N = index_N[self.previous(index_N, k) == token]
            if token == ABSENT or not len(index_N):
                break
            if k in CONTEXTS:
                c_V = np.bincount(self.tokens_N[index_N], minlength=len(frozen_V))
                d, longest = np.count_nonzero(c_V), k
                cache_V = (c_V + d * cache_V) / (len(index_N) + d)
        w = _posterior_mean(self.evidence_KG[longest])
        return w * cache_V + (1 - w) * frozen_V


class _Counts(NamedTuple):
    """Counts (N,) before the targets ``at``: of the target, of all tokens, of different tokens."""

    at: Ints
    c: Ints
    n: Ints
    d: Ints


def _earlier(groups_N: Ints, counted_N: np.ndarray | None = None) -> Ints:
    """Number of earlier (and counted) entries of each entry's group."""
    order = np.argsort(groups_N, kind="stable")
    counted = np.ones(len(order), np.int64) if counted_N is None else counted_N[order].astype(np.int64)
    before = np.cumsum(counted) - counted
    begins = np.flatnonzero(np.diff(groups_N[order], prepend=-1))
    result_N = np.empty(len(order), np.int64)
    result_N[order] = before - np.repeat(before[begins], np.diff(begins, append=len(order)))
    return result_N


def _posterior_mean(evidence_G: Floats) -> Floats:
    """Mean of w given log-likelihoods (…, G)."""
    likelihood_G = np.exp(evidence_G - evidence_G.max(axis=-1, keepdims=True))
    return (likelihood_G @ GRID) / likelihood_G.sum(axis=-1)


class CachedModel(LanguageModel):
    """A model with the cache of a text that was read, which stays as it is; like counts, in main memory."""

    device = torch.device("cpu")

    def __init__(self, frozen: LanguageModel, cache: NgramCache) -> None:
        super().__init__(frozen.config, frozen.vocab_size, frozen.boundary_id)
        self.frozen, self.cache = frozen, cache
        self.max_len = None if frozen.max_len is None else max(frozen.max_len, *CONTEXTS)
        self.supports_streaming = frozen.supports_streaming

    def init_state(self, batch_size: int, capacity: int) -> State:
        """The frozen model's state, and the last tokens, newest first: (B, max(CONTEXTS)) int64."""
        recent = torch.full((batch_size, max(CONTEXTS)), ABSENT)
        return (*self.frozen.init_state(batch_size, capacity), recent)

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """Log-probabilities."""
        *frozen_state, recent = state or self.init_state(len(tokens_BT), tokens_BT.shape[1])
        logits_BTV, new_state = self.frozen(
            tokens_BT.to(self.frozen.device), tuple(frozen_state) if state else None, valid_BT
        )
        p_BTV = logits_BTV.cpu().double().softmax(dim=-1).numpy()
        for t, token_B in enumerate(tokens_BT.T):
            recent = torch.cat([token_B[:, None], recent[:, :-1]], dim=1)
            recent[token_B == self.boundary_id, 1:] = ABSENT  # a document begins
            for p_TV, context in zip(p_BTV, recent.numpy(), strict=True):
                p_TV[t] = self.cache.distribution(context, p_TV[t])
        logits_BTV = torch.from_numpy(p_BTV).log().float()
        return logits_BTV, (*new_state, recent) if new_state is not None else None
