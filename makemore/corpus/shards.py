"""Parts of a split that are small enough to be planned at once."""

from __future__ import annotations

import numpy as np

from makemore.corpus.rows import Stretches, document_groups
from makemore.types import Split

SHARD_TOKENS = 1 << 22
STRETCH_TOKENS = 1 << 13


class Shards:
    """An epoch's parts. A split of at most ``size`` tokens is one: all of its documents, whole.

    A larger one is dealt out: many documents in runs, a long document in stretches from all over it,
    so that each part is like the whole.
    """

    def __init__(
        self, split: Split, seed: int, size: int = SHARD_TOKENS, stretch: int = STRETCH_TOKENS
    ) -> None:
        self.split, self.seed = split, seed
        ends = split.ends_D
        self.count = max(1, -(-len(split.tokens_N) // size))
        sizes = ends - split.starts_D
        if self.count == 1:
            self._stretches = Stretches(split.starts_D, ends, split.starts_D)
            return
        pieces_D = np.maximum(1, -(-sizes // stretch))
        if pieces_D.sum() > 2 * len(sizes):
            floor = np.repeat(split.starts_D, pieces_D)
            nth = np.arange(len(floor)) - np.repeat(np.cumsum(pieces_D) - pieces_D, pieces_D)
            begin = floor + nth * stretch
            self._stretches = Stretches(begin, np.minimum(begin + stretch, np.repeat(ends, pieces_D)), floor)
            self._edges = None
        else:
            self._stretches = Stretches(split.starts_D, ends, split.starts_D)
            self._edges = document_groups(ends, size, self.count)
            self.count = len(self._edges) - 1

    def take(self, epoch: int, nth: int) -> tuple[Stretches, np.random.Generator]:
        """The ``nth`` part of an epoch, and the random numbers to cut it with."""
        if self.count == 1:
            return self._stretches, np.random.default_rng([self.seed, epoch])
        order = np.random.default_rng([self.seed, epoch])
        rng = np.random.default_rng([self.seed, epoch, nth])
        if self._edges is None:
            chosen: np.ndarray | slice = order.permutation(len(self._stretches.begin))[nth :: self.count]
        else:
            at = order.permutation(self.count)[nth]
            chosen = slice(self._edges[at], self._edges[at + 1])
        return Stretches(*(part[chosen] for part in self._stretches)), rng
