"""Shards: parts of a split, small enough to lay out the batches of one at a time."""

from __future__ import annotations

import numpy as np

from makemore.corpus.rows import Segments, document_groups
from makemore.types import Split

SHARD_TOKENS = 1 << 22
SEGMENT_TOKENS = 1 << 13


class Shards:
    """An epoch's shards. A split of at most ``size`` tokens is one shard of whole documents.

    Shards of a larger split are groups of consecutive documents, or if documents are long, random
    segments from the whole split.
    """

    def __init__(
        self, split: Split, seed: int, size: int = SHARD_TOKENS, segment: int = SEGMENT_TOKENS
    ) -> None:
        self.split, self.seed = split, seed
        ends = split.ends_D
        self.count = max(1, -(-len(split.tokens_N) // size))
        sizes = ends - split.starts_D
        if self.count == 1:
            self._segments = Segments(split.starts_D, ends, split.starts_D)
            return
        pieces_D = np.maximum(1, -(-sizes // segment))
        if pieces_D.sum() > 2 * len(sizes):
            floor = np.repeat(split.starts_D, pieces_D)
            nth = np.arange(len(floor)) - np.repeat(np.cumsum(pieces_D) - pieces_D, pieces_D)
            begin = floor + nth * segment
            self._segments = Segments(begin, np.minimum(begin + segment, np.repeat(ends, pieces_D)), floor)
            self._edges = None
        else:
            self._segments = Segments(split.starts_D, ends, split.starts_D)
            self._edges = document_groups(ends, size, self.count)
            self.count = len(self._edges) - 1

    def load(self, epoch: int, nth: int) -> tuple[Segments, np.random.Generator]:
        """The segments of an epoch's ``nth`` shard, and the random generator to cut them with."""
        if self.count == 1:
            return self._segments, np.random.default_rng([self.seed, epoch])
        epoch_rng = np.random.default_rng([self.seed, epoch])
        rng = np.random.default_rng([self.seed, epoch, nth])
        if self._edges is None:
            index: np.ndarray | slice = epoch_rng.permutation(len(self._segments.begin))[nth :: self.count]
        else:
            group = epoch_rng.permutation(self.count)[nth]
            index = slice(self._edges[group], self._edges[group + 1])
        return Segments(*(part[index] for part in self._segments)), rng
