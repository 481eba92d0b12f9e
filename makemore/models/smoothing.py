"""Smoothed n-gram distributions: interpolated modified Kneser-Ney (Chen & Goodman 1999) and additive."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from makemore.models.ngrams import ABSENT, NgramTable
from makemore.settings import ModelConfig, NonNegative
from makemore.types import Floats, Ints


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


class SmoothedLevel(NamedTuple):
    """Lookup tables for one order of a smoothed model.

    G n-grams, C contexts. All arrays but ``tokens`` have two extra entries at the end, which the indices
    ABSENT (-1) and UNSEEN (-2) select: share 0, no n-grams, backoff weight 1.
    """

    shares: Floats
    """(G + 2,): probability each n-gram adds to the backed-off probability."""
    tokens: Ints
    """(G,): last token of each n-gram."""
    backoff_weights: Floats
    """(C + 2,): weight of the shorter context's distribution, by context."""
    first_child: Ints
    """(C + 2,): index of each context's first n-gram."""
    children: Ints
    """(C + 2,): number of n-grams of each context."""


class SmoothedNgrams:
    """Smoothed probabilities of an n-gram table in float64; the config may have a lower order.

    Smoothing gives no probability to the end of an empty document, nor to the end of any document
    if none was counted (running text).
    """

    def __init__(self, table: NgramTable, config: CountConfig) -> None:
        self.table = table
        self.uniform_V = _uniform(table)
        self.backs_off = config.smoothing != "additive"
        self.levels = [
            _build_level(table, m, discounted_G, backoff_C)
            for m, (discounted_G, backoff_C) in enumerate(_smooth(table, config))
        ]
        root = np.zeros(1, np.int64)
        self.unigram_1V = self._interpolate(self.levels[0], root, self.uniform_V[None].copy())
        if len(self.levels) > 1 and table.counts[0].any():
            self._exclude_empty_documents(self.levels[1])

    def dense(self, contexts: list[Ints]) -> Floats:
        """Distributions (N, V) after ``contexts``, as returned by ``NgramTable.contexts``."""
        p_NV = np.repeat(self.unigram_1V, len(contexts[0]), axis=0)
        for level, nodes_N in zip(self.levels[1:], contexts[1:], strict=False):
            p_NV = self._interpolate(level, nodes_N, p_NV)
        return p_NV

    def target_probs(self, contexts: list[Ints], targets_N: Ints) -> Floats:
        """Probability (N,) of each target after its context."""
        p_N = self.uniform_V[targets_N]
        for m, (level, nodes_N) in enumerate(zip(self.levels, contexts, strict=False)):
            if not self.backs_off:
                p_N = np.where(nodes_N == ABSENT, p_N, self.uniform_V[targets_N])
            grams_N = self.table.find(m, nodes_N, targets_N)
            p_N = p_N * level.backoff_weights[nodes_N] + level.shares[grams_N]
        return p_N

    def _exclude_empty_documents(self, bigrams: SmoothedLevel) -> None:
        """Distribute the back-off mass at a document's start over all tokens except the boundary."""
        start = self.table.boundary_id
        p_V = self.unigram_1V[0] if self.backs_off else self.uniform_V
        rest = 1 - p_V[start]
        if rest > 0:
            grams = bigrams.first_child[start] + np.arange(bigrams.children[start])
            tokens = bigrams.tokens[grams]
            passed_on = np.where(tokens == start, 0.0, p_V[tokens] / rest)
            bigrams.shares[grams] += bigrams.backoff_weights[start] * passed_on
            bigrams.backoff_weights[start] = 0.0

    def _interpolate(self, level: SmoothedLevel, nodes_N: Ints, p_NV: Floats) -> Floats:
        """Update the shorter contexts' distributions to the distributions of ``nodes_N``, in place."""
        if not self.backs_off:
            p_NV[nodes_N != ABSENT] = self.uniform_V
        p_NV *= level.backoff_weights[nodes_N, None]
        children_N = level.children[nodes_N]
        ends_N = np.cumsum(children_N)
        total = int(ends_N[-1]) if len(ends_N) else 0
        # A context's n-grams are adjacent: enumerate all of them, then shift each row's range.
        shifts_N = level.first_child[nodes_N] - (ends_N - children_N)
        grams = np.arange(total) + np.repeat(shifts_N, children_N)
        row_starts = np.repeat(np.arange(len(nodes_N)) * p_NV.shape[1], children_N)
        p_NV.reshape(-1)[row_starts + level.tokens[grams]] += level.shares[grams]
        return p_NV


def _uniform(table: NgramTable) -> Floats:
    """(V,): equal probabilities, without the boundary if it was never counted."""
    is_possible_V = np.ones(table.vocab_size, bool)
    is_possible_V[table.boundary_id] = table.counts[0][table.boundary_id] > 0 or not table.counts[0].any()
    return is_possible_V / is_possible_V.sum()


def _build_level(table: NgramTable, m: int, discounted_G: Floats, backoff_C: Floats) -> SmoothedLevel:
    """Divide discounted counts and backoff mass by each context's total: probabilities, backoff weights."""
    nodes_G, token_G = table.split_keys(m)
    total_C = np.bincount(nodes_G, weights=discounted_G, minlength=len(backoff_C)) + backoff_C
    seen_C = total_C > 0
    total_C[~seen_C] = 1.0  # no counts: back off completely
    backoff_weight_C = np.where(seen_C, backoff_C / total_C, 1.0)
    children_C = np.bincount(nodes_G, minlength=len(backoff_C))
    return SmoothedLevel(
        shares=np.append(discounted_G / total_C[nodes_G], [0.0, 0.0]),
        tokens=token_G,
        backoff_weights=np.append(backoff_weight_C, [1.0, 1.0]),
        first_child=np.append(np.cumsum(children_C) - children_C, [0, 0]),
        children=np.append(children_C, [0, 0]),
    )


def _smooth(table: NgramTable, config: CountConfig) -> list[tuple[Floats, Floats]]:
    """Discounted counts of the n-grams and backoff mass of the contexts, by level."""
    if config.smoothing == "kneser-ney":
        return _kneser_ney(table, config.order)
    n_contexts = [1, *map(len, table.keys)]
    priors = [np.full(n_contexts[m], config.alpha) for m in range(config.order)]
    if config.smoothing == "additive":
        priors = [prior * np.count_nonzero(_uniform(table)) for prior in priors]
        if len(priors) > 1:  # no boundary after a boundary
            priors[1][table.boundary_id] = config.alpha * (table.vocab_size - 1)
    return [(table.counts[m].astype(np.float64), prior) for m, prior in enumerate(priors)]


def _kneser_ney(table: NgramTable, order: int) -> list[tuple[Floats, Floats]]:
    """Interpolated modified Kneser-Ney (Chen & Goodman 1998, "An Empirical Study of Smoothing
    Techniques for Language Modeling"): separate discounts for counts of 1, 2 and at least 3.

    Lower orders use continuation counts, the number of distinct tokens seen before an n-gram. An order
    whose discounts can't be estimated uses the discounts of the next higher order, whose n-grams are rarer.
    """
    counts = [*table.continuations[: order - 1], table.counts[order - 1]]
    result: list[tuple[Floats, Floats]] = []
    discounts = np.array([0.5, 1.0, 1.5])
    n_contexts = [1, *map(len, table.keys)]
    for m in reversed(range(order)):
        discounts = estimate_discounts(counts[m], discounts)
        discount_G = np.append(0.0, discounts)[np.minimum(counts[m], 3)]
        nodes_G = table.keys[m] // table.vocab_size
        backoff_C = np.bincount(nodes_G, weights=discount_G, minlength=n_contexts[m])
        result.append((counts[m].astype(np.float64) - discount_G, backoff_C.astype(np.float64)))
    return result[::-1]


def estimate_discounts(counts_G: Ints, fallback: Floats) -> Floats:
    """Discounts for counts of 1, 2 and at least 3, from the numbers of n-grams with counts 1, 2, 3 and 4.

    With a small alphabet few short n-grams are rare, and the estimate fails. Then all three are the single
    discount of Ney, Essen & Kneser (1994), or ``fallback`` if no n-gram has count 1 or none has count 2.
    """
    n = np.bincount(np.minimum(counts_G, 5), minlength=6)[1:5].astype(np.float64)
    if n[0] == 0 or n[1] == 0:
        return fallback
    single = n[0] / (n[0] + 2 * n[1])
    if n[2] > 0:
        k = np.arange(1, 4)
        discounts = k - (k + 1) * single * n[1:] / n[:3]
        if n[3] > 0 and (discounts > 0).all():
            return discounts
    return np.full(3, single)
