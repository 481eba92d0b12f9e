"""Counted n-grams, smoothed: the best that can be done without gradients.

Every smoothing here has one form: a context gives each continuation it was seen with a share, and
what is left over to the distribution of a shorter context, down to the uniform one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from makemore.config import CorpusFacts, Recipe, setting
from makemore.models.base import CountModel, base_training
from makemore.models.ngrams import ABSENT, Ints, NgramTable
from makemore.types import IGNORE_INDEX, Batch, State

Floats = NDArray[np.float64]

COUNT_AT_ONCE = 1 << 20
"""Tokens gathered before they are counted."""
DENSE_AT_ONCE = 1 << 17
"""Probabilities worked on together: what fits a processor's cache."""


@dataclass(frozen=True)
class CountConfig:
    """Settings of ``count``."""

    order: int = setting(5, "longest n-gram, in tokens: order - 1 tokens of context")
    smoothing: Literal["kneser-ney", "additive", "recursive-additive"] = setting(
        "kneser-ney", "how unseen continuations get their share"
    )
    alpha: float = setting(1.0, "constant of the additive smoothings (0: none)")

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 12:
            raise ValueError("order must be from 1 to 12")
        if self.smoothing not in ("kneser-ney", "additive", "recursive-additive"):
            raise ValueError("smoothing must be kneser-ney, additive or recursive-additive")
        if not 0 <= self.alpha < float("inf"):
            raise ValueError("alpha must be finite and not negative")


class Level(NamedTuple):
    """One order of a smoothed model, ready for use.

    The last two entries of ``share_G``, ``rest_C``, ``first_C`` and ``children_C`` are those of
    ABSENT (-1) and UNSEEN (-2), as numpy indexes from the end: no share, and all the rest.
    """

    share_G: Floats
    """Of each n-gram: its share beyond what the shorter context gives."""
    token_G: Ints
    """Of each n-gram: its last token."""
    rest_C: Floats
    """Of each context: the share that goes to the shorter context's distribution."""
    first_C: Ints
    """Of each context: its first n-gram."""
    children_C: Ints
    """Of each context: its number of n-grams."""


class Smoothed:
    """Probabilities of a table under a config of the table's order or less, all in float64."""

    def __init__(self, table: NgramTable, config: CountConfig) -> None:
        self.table = table
        self.uniform = 1 / table.vocab_size
        self.backs_off = config.smoothing != "additive"
        self.levels = [
            _level(table, m, kept_G, given_C)
            for m, (kept_G, given_C) in enumerate(_smooth(table, config))
        ]
        root = np.zeros(1, np.int64)
        start = np.full((1, table.vocab_size), self.uniform)
        self.unigram_1V = self._apply(self.levels[0], root, start)

    def dense(self, contexts: list[Ints]) -> Floats:
        """Distributions (N, V) after contexts, as ``NgramTable.contexts`` gives them."""
        p_NV = np.repeat(self.unigram_1V, len(contexts[0]), axis=0)
        for level, nodes_N in zip(self.levels[1:], contexts[1:], strict=False):
            p_NV = self._apply(level, nodes_N, p_NV)
        return p_NV

    def of_targets(self, contexts: list[Ints], targets_N: Ints) -> Floats:
        """The probability (N,) of each target after its context."""
        p_N = np.full(len(targets_N), self.uniform)
        for m, (level, nodes_N) in enumerate(zip(self.levels, contexts, strict=False)):
            if not self.backs_off:
                p_N[nodes_N != ABSENT] = self.uniform
            grams_N = self.table.find(m, nodes_N, targets_N)
            p_N = p_N * level.rest_C[nodes_N] + level.share_G[grams_N]
        return p_N

    def _apply(self, level: Level, nodes_N: Ints, p_NV: Floats) -> Floats:
        """From the shorter contexts' distributions to those of ``nodes_N``, in place."""
        if not self.backs_off:
            p_NV[nodes_N != ABSENT] = self.uniform
        p_NV *= level.rest_C[nodes_N, None]
        children_N = level.children_C[nodes_N]
        ends_N = np.cumsum(children_N)
        total = int(ends_N[-1]) if len(ends_N) else 0
        # A context's n-grams lie side by side: number them all, then shift each row's run.
        grams = np.arange(total) + np.repeat(level.first_C[nodes_N] - ends_N + children_N, children_N)
        row_starts = np.repeat(np.arange(len(nodes_N)) * p_NV.shape[1], children_N)
        p_NV.reshape(-1)[row_starts + level.token_G[grams]] += level.share_G[grams]
        return p_NV


def _level(table: NgramTable, m: int, kept_G: Floats, given_C: Floats) -> Level:
    """Turn counts kept by n-grams and given up by their contexts into shares."""
    nodes_G, token_G = table.split_keys(m)
    total_C = np.bincount(nodes_G, weights=kept_G, minlength=len(given_C)) + given_C
    known_C = total_C > 0
    total_C[~known_C] = 1.0  # no counts at all: everything goes to the shorter context
    rest_C = np.where(known_C, given_C / total_C, 1.0)
    children_C = np.bincount(nodes_G, minlength=len(given_C))
    return Level(
        share_G=np.append(kept_G / total_C[nodes_G], [0.0, 0.0]),
        token_G=token_G,
        rest_C=np.append(rest_C, [1.0, 1.0]),
        first_C=np.append(np.cumsum(children_C) - children_C, [0, 0]),
        children_C=np.append(children_C, [0, 0]),
    )


def _smooth(table: NgramTable, config: CountConfig) -> list[tuple[Floats, Floats]]:
    """Of each level: the count each n-gram keeps, and what each context gives to shorter ones."""
    if config.smoothing == "kneser-ney":
        return _kneser_ney(table, config.order)
    added = config.alpha * (table.vocab_size if config.smoothing == "additive" else 1)
    n_contexts = [1, *map(len, table.keys)]
    return [
        (table.counts[m].astype(np.float64), np.full(n_contexts[m], added))
        for m in range(config.order)
    ]


def _kneser_ney(table: NgramTable, order: int) -> list[tuple[Floats, Floats]]:
    """Interpolated modified Kneser-Ney: an absolute discount for each count of 1, 2, 3 and more.

    Below the highest order, counts are of different tokens seen before the n-gram.
    """
    counts = [*table.continuations[: order - 1], table.counts[order - 1]]
    result: list[tuple[Floats, Floats]] = []
    discounts = np.array([0.5, 1.0, 1.5])
    n_contexts = [1, *map(len, table.keys)]
    for m in reversed(range(order)):
        discounts = estimate_discounts(counts[m], discounts)
        discount_G = np.append(0.0, discounts)[np.minimum(counts[m], 3)]
        nodes_G = table.keys[m] // table.vocab_size
        given_C = np.bincount(nodes_G, weights=discount_G, minlength=n_contexts[m])
        result.append((counts[m] - discount_G, given_C))
    return result[::-1]


def estimate_discounts(counts_G: Ints, fallback: Floats) -> Floats:
    """Discounts of counts 1, 2, 3 and more (Chen & Goodman 1998, "An Empirical Study of Smoothing
    Techniques for Language Modeling", equation 26), from how many n-grams have counts 1 to 4.

    A small alphabet's short n-grams are seldom rare, and then the estimate breaks. In its place
    stands the single discount of Ney, Essen & Kneser (1994), or ``fallback`` where even that needs
    counts of 1 and 2 that aren't there.
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


class Count(CountModel):
    """Distributions from a table of n-grams; the table stays in main memory on every device."""

    Config: ClassVar[type] = CountConfig
    summary = "n-gram counts, by default with modified Kneser-Ney smoothing"

    def __init__(self, config: CountConfig, vocab_size: int, boundary_id: int) -> None:
        super().__init__(config, vocab_size, boundary_id)
        self.max_len = max(config.order - 1, 1)
        self._pending: list[tuple[Ints, Ints]] = []
        self._tables: list[NgramTable] = []
        self.register_buffer("ends", torch.empty(0, config.order - 1, dtype=torch.int64))
        self._set_table(NgramTable.empty(config.order, vocab_size, boundary_id))

    def observe(self, batch: Batch) -> None:
        """Count the targets of a batch after their contexts.

        Raises ValueError where a batch continues, and the one before had other rows or isn't there.
        """
        inputs_BT, targets_BT = batch.inputs_BT.cpu(), batch.targets_BT.cpu()
        rows = len(inputs_BT)
        if not batch.continues:
            self.ends = self._no_tokens(rows)
        elif len(self.ends) != rows:
            raise ValueError(f"{rows} rows can't continue {len(self.ends)}")
        before = self._no_tokens(rows, 1), self.ends.cpu()
        inputs = torch.cat([*before, inputs_BT], dim=1)
        targets = torch.nn.functional.pad(targets_BT, (self.config.order, 0), value=IGNORE_INDEX)
        self.ends = inputs[:, inputs.shape[1] - self.config.order + 1 :]
        self._pending.append((inputs.flatten().numpy(), targets.flatten().numpy()))
        if sum(len(inputs_N) for inputs_N, _ in self._pending) >= COUNT_AT_ONCE:
            self._count_pending()

    def finish(self) -> None:
        self.ends = self._no_tokens(0)
        self._settle()
        self._smoothed()

    def _no_tokens(self, rows: int, length: int | None = None) -> Tensor:
        return torch.full((rows, self.config.order - 1 if length is None else length), ABSENT)
