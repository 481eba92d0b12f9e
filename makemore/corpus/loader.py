"""Batch loaders, endless or single-pass; the position of each is a few integers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from makemore.corpus.arrays import release
from makemore.corpus.rows import Rows, document_groups, shuffled_windows, to_batch, token_groups
from makemore.corpus.shards import SHARD_TOKENS, Shards
from makemore.types import IGNORE_INDEX, Batch, Split

RELEASE_INTERVAL = 64
"""Batches between releases of memory-mapped pages in an ordered pass."""


class Batching(NamedTuple):
    """How an endless loader cuts batches: targets per batch, length of rows, and the random seed."""

    batch_tokens: int
    block_size: int
    seed: int


class Loader(ABC):
    """Iterates over batches, deterministic from a seed; ``state_dict`` is the exact position.

    An epoch is planned part by part; a batch never spans two parts.
    """

    part_name: ClassVar[str] = "shard"
    """What a part is called in saved states."""
    n_parts = 1

    def __init__(self, split: Split, boundary_id: int) -> None:
        self.split, self.boundary_id = split, boundary_id
        self.epoch, self.part, self.cursor = 0, 0, 0
        self._planned = (-1, -1)
        self._n_batches = 0

    @abstractmethod
    def _plan(self) -> int:
        """Lay out the batches of the current part and return their number."""

    @abstractmethod
    def _batch(self, nth: int) -> Batch:
        """The ``nth`` batch of the current part."""

    def _end_epoch(self) -> None:
        self.epoch, self.part = self.epoch + 1, 0

    def next(self) -> Batch:
        """The next batch. Raises StopIteration at the end of a finite loader."""
        if self.part >= self.n_parts:
            self._end_epoch()
        if self._planned != (self.epoch, self.part):
            release(self.split.tokens_N)
            self._n_batches, self._planned = self._plan(), (self.epoch, self.part)
        if self.cursor >= self._n_batches:
            self.cursor, self.part = 0, self.part + 1
            return self.next()
        self.cursor += 1
        return self._batch(self.cursor - 1)

    @property
    def progress(self) -> float | None:
        """Fraction of the data read, in [0, 1]; None for an endless loader."""
        return None

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "cursor": self.cursor, self.part_name: self.part}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.cursor = int(state["epoch"]), int(state["cursor"])
        self.part = int(state.get(self.part_name, 0))


class ShardedLoader(Loader):
    """An endless loader of shuffled documents, whose parts are shards."""

    def __init__(self, split: Split, boundary_id: int, seed: int, shards: Shards | None) -> None:
        super().__init__(split, boundary_id)
        self.shards = shards or Shards(split, seed)
        self.n_parts = self.shards.count


class ShuffledLoader(ShardedLoader):
    """Documents, or windows of long ones, in random order, about ``batch_tokens`` targets per batch.

    An epoch drops a last batch that is less than half full and may repeat the ends of a long document.
    Batches are cut by tokens, not rows, to give every token the same weight.
    """

    def __init__(
        self,
        split: Split,
        boundary_id: int,
        batching: Batching,
        context_prefix: int,
        shards: Shards | None = None,
    ) -> None:
        super().__init__(split, boundary_id, batching.seed, shards)
        self.batch_tokens, self.block_size, _ = batching
        self.context_prefix = context_prefix
        self._rows = Rows(*[np.zeros(0, np.int64)] * 3)
        self._edges = np.zeros(1, np.int64)

    def _plan(self) -> int:
        segments, rng = self.shards.load(self.epoch, self.part)
        rows = shuffled_windows(segments, self.block_size, self.context_prefix, rng)
        rows = rows.select(rng.permutation(len(rows.begin)))
        counted = rows.end - rows.score_from
        edges = token_groups(counted, self.batch_tokens)
        # Drop a last batch less than half full: its tokens would weigh more than others.
        if len(edges) > 2 and counted[edges[-2] :].sum() < self.batch_tokens // 2:
            edges = edges[:-1]
        self._rows, self._edges = rows, edges
        return len(edges) - 1

    def _batch(self, nth: int) -> Batch:
        rows = self._rows.select(slice(self._edges[nth], self._edges[nth + 1]))
        return to_batch(self.split, rows, self.boundary_id)


class PackedLoader(ShardedLoader):
    """Documents in random order, packed into rows of ``block_size``: all batches have one shape.

    For models that start a new document at a boundary within a row.
    """

    def __init__(
        self, split: Split, boundary_id: int, batching: Batching, shards: Shards | None = None
    ) -> None:
        super().__init__(split, boundary_id, batching.seed, shards)
        self.block_size, self.rows = batching.block_size, max(1, batching.batch_tokens // batching.block_size)
        self._index = np.zeros(0, np.int64)
        self._edges = np.zeros(1, np.int64)

    def _plan(self) -> int:
        """Lay out the target indices in row order, and the edges of rows among them."""
        segments, rng = self.shards.load(self.epoch, self.part)
        pieces = shuffled_windows(segments, self.block_size, 0, rng)
        pieces = pieces.select(rng.permutation(len(pieces.begin)))
        ends = np.cumsum(pieces.lengths)
        shift = np.repeat(pieces.begin - (ends - pieces.lengths), pieces.lengths)
        self._index = np.arange(int(ends[-1])) + shift
        edges = [0]
        while edges[-1] < ends[-1]:
            fits = np.searchsorted(ends, edges[-1] + self.block_size, side="right")
            edges.append(int(ends[fits - 1]))
        self._edges = np.array(edges)
        # Drop an unfilled last batch, to keep one shape.
        n_rows = len(edges) - 1
        return max(n_rows // self.rows, 1)

    def _batch(self, nth: int) -> Batch:
        edges = self._edges[nth * self.rows : (nth + 1) * self.rows + 1]
        positions = edges[:-1, None] + np.arange(self.block_size)
        inside = positions < edges[1:, None]
        index = self._index[np.minimum(positions, len(self._index) - 1)]
        inputs = np.where(inside, self.split.inputs_at(index, self.boundary_id), self.boundary_id)
        targets = np.where(inside, self.split.tokens_N[index].astype(np.int64), IGNORE_INDEX)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))


class StreamLoader(Loader):
    """Parallel contiguous streams for truncated backpropagation through time (Williams & Peng 1990).

    ``random`` truncation samples row lengths from 0.5 to 1.5 times ``block_size`` each epoch (after
    Merity et al. 2018).
    """

    def __init__(
        self, split: Split, boundary_id: int, batching: Batching, truncation: str = "regular"
    ) -> None:
        super().__init__(split, boundary_id)
        batch_tokens, block_size, self.seed = batching
        self.truncation, total = truncation, len(split.tokens_N)
        self.block_size = min(block_size, total)
        self.rows = max(1, min(batch_tokens // block_size, total // self.block_size))
        self._edges = np.zeros(1, np.int64)

    def _plan(self) -> int:
        self._edges = self._stream_edges()
        return len(self._edges) - 1

    def _stream_edges(self) -> np.ndarray:
        """Edges of the epoch's batches within each stream."""
        rng = np.random.default_rng([self.seed, self.epoch])
        size, block = len(self.split.tokens_N) // self.rows, self.block_size
        # With a random phase, other tokens are predicted without context in each epoch.
        phase = int(rng.integers(0, min(block, size - block + 1)))
        if self.truncation == "regular":
            return np.arange(phase, size + 1, block)
        lengths = rng.integers(max(1, block // 2), block + block // 2 + 1, 2 * size // block + 1)
        edges = phase + np.concatenate([[0], np.cumsum(lengths)])
        return np.append(edges[edges < size], size)

    def _batch(self, nth: int) -> Batch:
        begin, end = self._edges[nth : nth + 2]
        first = np.arange(self.rows) * (len(self.split.tokens_N) // self.rows)
        rows = Rows(first + begin, first + begin, first + end)
        return to_batch(self.split, rows, self.boundary_id, continues=nth > 0)


class OrderedLoader(Loader):
    """A single pass over a split, for counting; documents are sorted by length and long ones cut into pieces.

    Documents are sorted within groups of about ``group_tokens``. With ``in_order`` they are one long
    row instead.
    """

    part_name = "group"

    def __init__(
        self,
        split: Split,
        boundary_id: int,
        batch_tokens: int,
        group_tokens: int = SHARD_TOKENS,
        in_order: bool = False,
    ) -> None:
        super().__init__(split, boundary_id)
        self.batch_tokens, self.in_order = batch_tokens, in_order
        n_groups = max(1, -(-len(split.tokens_N) // group_tokens))
        self._groups = document_groups(split.ends_D, group_tokens, n_groups)
        self.n_parts = len(self._groups) - 1
        self._batches: list[tuple[Rows, bool]] = []

    def _plan(self) -> int:
        first, last = self._groups[self.part : self.part + 2]
        begin, end = self.split.starts_D[first:last], self.split.ends_D[first:last]
        if self.in_order:
            self._batches = self._plan_long(int(begin[0]), int(end[-1]))
            return len(self._batches)
        sizes = end - begin
        short = np.flatnonzero(sizes <= self.batch_tokens)
        short = short[np.argsort(sizes[short], kind="stable")]
        self._batches = self._plan_short(begin[short], end[short])
        for document in np.flatnonzero(sizes > self.batch_tokens):
            self._batches += self._plan_long(int(begin[document]), int(end[document]))
        return len(self._batches)

    def _plan_short(self, begin: np.ndarray, end: np.ndarray) -> list[tuple[Rows, bool]]:
        edges = token_groups(end - begin, self.batch_tokens)
        return [(Rows(begin[a:b], begin[a:b], end[a:b]), False) for a, b in pairwise(edges)]

    def _plan_long(self, begin: int, end: int) -> list[tuple[Rows, bool]]:
        edges = np.append(np.arange(begin, end, self.batch_tokens), end)
        return [(Rows(*edges[[i, i, i + 1], None]), i > 0) for i in range(len(edges) - 1)]

    @property
    def progress(self) -> float:
        if self.part >= self.n_parts:
            return 1.0
        done = self.cursor / max(self._n_batches, 1) if self._planned == (0, self.part) else 0.0
        return (self.part + done) / self.n_parts

    def _end_epoch(self) -> None:
        raise StopIteration

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.next, None)

    def _batch(self, nth: int) -> Batch:
        if self.cursor % RELEASE_INTERVAL == 0:
            release(self.split.tokens_N)
        rows, continues = self._batches[nth]
        return to_batch(self.split, rows, self.boundary_id, continues)
