"""Smoothed n-gram distributions: interpolated modified Kneser-Ney (Chen & Goodman 1999) and additive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from makemore.models.ngrams.packed import Bytes, Tokens
from makemore.models.ngrams.table import ABSENT, ROOT, NgramTable, Nodes
from makemore.runtime.process import release_memory
from makemore.settings import ModelConfig, NonNegative
from makemore.types import IGNORE_INDEX, Floats, Floats32, Ints


class CountConfig(ModelConfig):
    """Settings of ``count``."""

    name: Literal["count"] = "count"
    order: int = Field(
        0, ge=0, le=12, description="longest n-gram in tokens (0: choose the best on val, up to max_order)"
    )
    smoothing: Literal["kneser-ney", "additive", "recursive-additive"] = Field(
        "kneser-ney", description="how unseen continuations get probability"
    )
    alpha: NonNegative = Field(1.0, description="smoothing constant of the additive methods (0: none)")
    max_order: int = Field(12, ge=1, le=12, description="longest n-gram counted when order is 0")


class LevelSmoothing(NamedTuple):
    """How the counts of the n-grams of one length become probabilities."""

    uses_continuations: bool
    """Whether a count is the number of distinct tokens seen before the n-gram."""
    discounts: tuple[float, ...]
    """Subtracted from counts of 0, 1, 2 and at least 3."""


class SmoothedNgrams:
    """Smoothed probabilities of an n-gram table, stored in float32; the config may have a lower order.

    Smoothing gives no probability to the end of an empty document, nor to the end of any document if none was
    counted (running text).
    """

    shares_G: Floats32
    """(G + 2,): probability that each n-gram adds to the backed-off probability. ABSENT (-1) and UNSEEN (-2)
    select the two extra entries, which are 0."""
    backoff_weights_C: Floats32
    """(C + 2,): weight of the shorter context's distribution, by context; 1 for ABSENT and UNSEEN."""

    def __init__(self, table: NgramTable, config: CountConfig) -> None:
        self.table = table.cut(config.order)
        self.uniform_V = _uniform(table)
        self.backs_off = config.smoothing != "additive"
        starts = self.table.starts
        self.shares_G = np.zeros(starts[-1] + 2, np.float32)
        self.backoff_weights_C = np.ones(starts[-2] + 2, np.float32)
        smoothings = level_smoothings(self.table, config)[-1]
        for n in range(1, config.order + 1):
            shares, weights = _smooth(self.table, config, smoothings[:n])
            self.shares_G[self.table.level(n)] = shares
            self.backoff_weights_C[self.table.level(n - 1)] = weights
            release_memory()
        self.unigram_1V = self._interpolate(np.array([ROOT], np.int32), self.uniform_V[None].copy())

    def dense(self, contexts: Sequence[Nodes]) -> Floats:
        """Distributions (N, V) after ``contexts``, as returned by ``NgramTable.contexts``."""
        p_NV = np.repeat(self.unigram_1V, len(contexts[0]), axis=0)
        for nodes_N in contexts[1 : self.table.order]:
            p_NV = self._interpolate(nodes_N, p_NV)
        return p_NV

    def target_probs(self, contexts: Sequence[Nodes], targets_N: Tokens) -> Floats:
        """Probability (N,) of each target after its context."""
        p_N = self.uniform_V[targets_N]
        for nodes_N in contexts[: self.table.order]:
            if not self.backs_off:
                p_N = np.where(nodes_N == ABSENT, p_N, self.uniform_V[targets_N])
            grams_N = self.table.find(nodes_N, targets_N)
            p_N = p_N * self.backoff_weights_C[nodes_N] + self.shares_G[grams_N]
        return p_N

    def _interpolate(self, nodes_N: Nodes, p_NV: Floats) -> Floats:
        """Update the shorter contexts' distributions to the distributions of ``nodes_N``, in place."""
        if not self.backs_off:
            p_NV[nodes_N != ABSENT] = self.uniform_V
        p_NV *= self.backoff_weights_C[nodes_N, None]
        known = np.flatnonzero(nodes_N >= 0)
        first = self.table.first_C[nodes_N[known]].astype(np.int64)
        n_children = self.table.first_C[nodes_N[known] + 1] - first
        ends = np.cumsum(n_children)
        total = int(ends[-1]) if len(ends) else 0
        # A context's n-grams are adjacent: enumerate all of them, then shift each row's range.
        grams = np.arange(total) + np.repeat(first - (ends - n_children), n_children)
        row_starts = np.repeat(known * p_NV.shape[1], n_children)
        p_NV.reshape(-1)[row_starts + self.table.tokens_G[grams]] += self.shares_G[grams]
        return p_NV


def losses_by_order(
    table: NgramTable, config: CountConfig, inputs_N: Tokens, targets_N: Tokens
) -> dict[int, float]:
    """Mean loss in nats per target for each order of a table, without recounting.

    Longer n-grams are added one length at a time: below the highest order, their smoothing mostly doesn't
    depend on it.
    """
    scored = np.flatnonzero(targets_N != IGNORE_INDEX)
    targets_N = targets_N[scored]
    uniform_N = _uniform(table)[targets_N]
    orders = level_smoothings(table, config)
    p_N: dict[tuple[LevelSmoothing, ...], Floats] = {(): uniform_N}
    losses: dict[int, float] = {}
    for n, contexts_N in enumerate(table.contexts_by_length(inputs_N), start=1):
        nodes_N = contexts_N[scored]
        grams_N = table.find(nodes_N, targets_N)
        known, seen = np.flatnonzero(nodes_N >= 0), np.flatnonzero(grams_N >= 0)
        restarts_N = (nodes_N != ABSENT) & (config.smoothing == "additive")  # without lower orders
        shorter, p_N = p_N, {}
        for smoothings in {order[:n] for order in orders[n - 1 :]}:
            shares, weights = _smooth(table, config, smoothings)
            target_N = np.where(restarts_N, uniform_N, shorter[smoothings[:-1]])
            target_N[known] *= weights[nodes_N[known] - table.starts[n - 1]]
            target_N[seen] += shares[grams_N[seen] - table.starts[n]]
            p_N[smoothings] = target_N
        release_memory()
        with np.errstate(divide="ignore"):  # log 0 without smoothing
            losses[n] = float(-np.log(p_N[orders[n - 1]]).mean())
    return losses


def _uniform(table: NgramTable) -> Floats:
    """(V,): equal probabilities, without the boundary if it was never counted."""
    is_possible_V = np.ones(table.vocab_size, bool)
    counts_V = table.counts(1)
    is_possible_V[table.boundary_id] = counts_V[table.boundary_id] > 0 or not counts_V.any()
    return is_possible_V / is_possible_V.sum()


def level_smoothings(table: NgramTable, config: CountConfig) -> list[tuple[LevelSmoothing, ...]]:
    """For each order up to the table's, how each length is smoothed.

    Kneser-Ney is the interpolated modified form (Chen & Goodman 1998, "An Empirical Study of Smoothing
    Techniques for Language Modeling"): separate discounts for counts of 1, 2 and at least 3. Lower orders use
    continuation counts. An order whose discounts can't be estimated uses the discounts of the next higher
    order, whose n-grams are rarer.
    """
    orders = range(1, table.order + 1)
    if config.smoothing != "kneser-ney":
        return [(LevelSmoothing(False, (0.0,) * 4),) * order for order in orders]
    plain = [_counts_of_counts(table.counts_G.bytes_G[table.level(n)]) for n in orders]
    continued = [_counts_of_counts(table.continuations_C.bytes_G[table.level(n)]) for n in orders[:-1]]
    result = []
    for order in orders:
        discounts = np.array([0.5, 1.0, 1.5])
        smoothings: list[LevelSmoothing] = []
        for n in range(order, 0, -1):
            frequencies = continued[n - 1] if n < order else plain[n - 1]
            discounts = estimate_discounts(frequencies, discounts)
            smoothings.insert(0, LevelSmoothing(n < order, (0.0, *discounts.tolist())))
        result.append(tuple(smoothings))
    return result


def _smooth(
    table: NgramTable, config: CountConfig, smoothings: tuple[LevelSmoothing, ...]
) -> tuple[Floats32, Floats32]:
    """Shares of the n-grams of length ``len(smoothings)``, smoothed by its last entry, and backoff weights of
    their contexts."""
    n, (uses_continuations, discounts) = len(smoothings), smoothings[-1]
    counts_G = table.continuations_C if uses_continuations else table.counts_G
    first_context, first_gram = table.starts[n - 1], table.starts[n]
    shares_G = np.empty(table.sizes[n - 1], np.float32)
    weights_C = np.empty(first_gram - first_context, np.float32)
    for contexts, grams in table.blocks(n):
        c = slice(contexts.start - first_context, contexts.stop - first_context)
        g = slice(grams.start - first_gram, grams.stop - first_gram)
        prior_C = _prior(table, config, contexts)
        block = _smooth_block(table.parents(contexts), counts_G.unpack(grams), discounts, prior_C)
        shares_G[g], weights_C[c] = block
    if n == 2 and table.counts(1).any():
        _exclude_empty_documents(table, config, smoothings[:1], shares_G, weights_C)
    return shares_G, weights_C


def _smooth_block(
    parents_G: Ints, counts_G: Ints, discounts: tuple[float, ...], prior_C: Floats
) -> tuple[Floats, Floats]:
    """Shares of n-grams and backoff weights of their contexts, from counts and the contexts' numbers."""
    total_C = np.bincount(parents_G, weights=counts_G, minlength=len(prior_C)) + prior_C
    discount_G = np.array(discounts)[np.minimum(counts_G, 3)]
    backoff_C = np.bincount(parents_G, weights=discount_G, minlength=len(prior_C)) + prior_C
    is_empty_C = total_C == 0  # no counts: back off completely
    total_C[is_empty_C] = backoff_C[is_empty_C] = 1.0
    return (counts_G - discount_G) / total_C[parents_G], backoff_C / total_C


def _prior(table: NgramTable, config: CountConfig, contexts: slice) -> Floats:
    """Added to the counts of each context (C,), for unseen continuations."""
    prior_C = np.zeros(contexts.stop - contexts.start)
    if config.smoothing == "recursive-additive":
        prior_C[:] = config.alpha
    if config.smoothing == "additive":
        prior_C[:] = config.alpha * np.count_nonzero(_uniform(table))
        start = table.boundary_id + 1
        if contexts.start <= start < contexts.stop:  # no boundary after a boundary
            prior_C[start - contexts.start] = config.alpha * (table.vocab_size - 1)
    return prior_C


def _exclude_empty_documents(
    table: NgramTable,
    config: CountConfig,
    unigrams: tuple[LevelSmoothing, ...],
    shares_G: Floats32,
    backoff_weights_C: Floats32,
) -> None:
    """Distribute the back-off mass at a document's start over all tokens except the boundary, in place."""
    start, p_V = table.boundary_id, _uniform(table)
    if config.smoothing != "additive":
        shares, weights = _smooth(table, config, unigrams)
        p_V = shares + weights * p_V
    rest = 1 - p_V[start]
    if rest > 0:
        grams = table.children(slice(1 + start, 2 + start))
        tokens = table.tokens_G[grams]
        passed_on = np.where(tokens == start, 0.0, p_V[tokens] / rest)
        first = table.starts[2]
        shares_G[grams.start - first : grams.stop - first] += backoff_weights_C[start] * passed_on
        backoff_weights_C[start] = 0.0


def _counts_of_counts(counts_G: Bytes) -> Ints:
    """(4,): the numbers of n-grams with counts 1, 2, 3 and 4, from packed counts."""
    return np.array([np.count_nonzero(counts_G == count) for count in range(1, 5)])


def estimate_discounts(counts_of_counts: Ints, fallback: Floats) -> Floats:
    """Discounts for counts of 1, 2 and at least 3, from the numbers of n-grams with counts 1, 2, 3 and 4.

    With a small alphabet few short n-grams are rare, and the estimate fails. Then all three are the single
    discount of Ney, Essen & Kneser (1994), or ``fallback`` if no n-gram has count 1 or none has count 2.
    """
    n = counts_of_counts.astype(np.float64)
    if n[0] == 0 or n[1] == 0:
        return fallback
    single = n[0] / (n[0] + 2 * n[1])
    if n[2] > 0:
        k = np.arange(1, 4)
        discounts = k - (k + 1) * single * n[1:] / n[:3]
        if n[3] > 0 and (discounts > 0).all():
            return discounts
    return np.full(3, single)
