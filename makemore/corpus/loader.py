"""Loaders: endless (or, for counting, one pass of) batches whose place fits in a few numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch

from makemore.corpus.rows import Rows, shuffled, to_batch
from makemore.types import IGNORE_INDEX, Batch, Split


class Loader(ABC):
    """Deterministic from a seed; ``state_dict`` says where it is, exactly."""

    def __init__(self) -> None:
        self.epoch = 0
        self.cursor = 0

    @abstractmethod
    def next(self) -> Batch:
        """The next batch. Raises StopIteration where a finite loader has ended."""

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.cursor = int(state["epoch"]), int(state["cursor"])


class ShuffledLoader(Loader):
    """Every token once an epoch, but for an unfilled last batch: whole documents, or windows of long
    ones, in random order.

    A batch is cut by tokens, not by rows: every token weighs the same.
    """

    def __init__(
        self, split: Split, boundary_id: int, batch_tokens: int, block_size: int, lead: int, seed: int
    ) -> None:
        super().__init__()
        self.split, self.boundary_id, self.seed = split, boundary_id, seed
        self.batch_tokens, self.block_size, self.lead = batch_tokens, block_size, lead
        self._planned = -1
        self._batches: list[Rows] = []

    def _plan(self) -> list[Rows]:
        rng = np.random.default_rng([self.seed, self.epoch])
        rows = shuffled(self.split, self.block_size, self.lead, rng)
        rows = rows.take(rng.permutation(len(rows.begin)))
        counted = rows.end - rows.count_from
        nth = (np.cumsum(counted) - counted) // self.batch_tokens
        edges = np.append(np.flatnonzero(np.diff(nth, prepend=-1)), len(nth))
        # An unfilled last batch would weigh its tokens more: they come again next epoch.
        if len(edges) > 2 and counted[edges[-2] :].sum() < self.batch_tokens // 2:
            edges = edges[:-1]
        return [rows.take(slice(a, b)) for a, b in pairwise(edges)]

    def next(self) -> Batch:
        if self._planned != self.epoch:
            self._batches, self._planned = self._plan(), self.epoch
        if self.cursor >= len(self._batches):
            self.epoch, self.cursor = self.epoch + 1, 0
            return self.next()
        rows = self._batches[self.cursor]
        self.cursor += 1
        return to_batch(self.split, rows, self.boundary_id)


class PackedLoader(Loader):
    """Documents in random order, as many in each row as fit: all batches have one shape.

    For models to which a boundary in a row begins a document.
    """

    def __init__(self, split: Split, boundary_id: int, batch_tokens: int, block_size: int, seed: int) -> None:
        super().__init__()
        self.split, self.boundary_id, self.seed = split, boundary_id, seed
        self.block_size, self.rows = block_size, max(1, batch_tokens // block_size)
        self._planned = -1
        self._index = np.zeros(0, np.int64)
        self._edges = np.zeros(1, np.int64)

    def _plan(self) -> None:
        """The epoch's targets in order, and where rows begin among them."""
        rng = np.random.default_rng([self.seed, self.epoch])
        pieces = shuffled(self.split, self.block_size, 0, rng)
        pieces = pieces.take(rng.permutation(len(pieces.begin)))
        ends = np.cumsum(pieces.lengths)
        shift = np.repeat(pieces.begin - (ends - pieces.lengths), pieces.lengths)
        self._index = np.arange(int(ends[-1])) + shift
        edges = [0]
        while edges[-1] < ends[-1]:
            fits = np.searchsorted(ends, edges[-1] + self.block_size, side="right")
            edges.append(int(ends[fits - 1]))
        self._edges, self._planned = np.array(edges), self.epoch

    def next(self) -> Batch:
        if self._planned != self.epoch:
            self._plan()
        first = self.cursor * self.rows
        n_rows = len(self._edges) - 1
        # An unfilled last batch is left out: its documents come again next epoch.
        if first + min(self.rows, n_rows) > n_rows:
            self.epoch, self.cursor = self.epoch + 1, 0
            return self.next()
        self.cursor += 1
        return self._batch(self._edges[first : first + self.rows + 1])

    def _batch(self, edges: np.ndarray) -> Batch:
        at = edges[:-1, None] + np.arange(self.block_size)
        inside = at < edges[1:, None]
        index = self._index[np.minimum(at, len(self._index) - 1)]
        inputs = np.where(inside, self.split.inputs_at(index, self.boundary_id), self.boundary_id)
        targets = np.where(inside, self.split.tokens_N[index].astype(np.int64), IGNORE_INDEX)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))


class StreamLoader(Loader):
    """Contiguous streams side by side, each batch going on where the last one ended: truncated
    backpropagation through time (Williams & Peng 1990).

    ``random`` truncation cuts elsewhere each epoch, into lengths from half to one and a half times
    ``block_size`` (after Merity et al. 2018).
    """

    def __init__(
        self,
        split: Split,
        boundary_id: int,
        batch_tokens: int,
        block_size: int,
        seed: int,
        truncation: str = "regular",
    ) -> None:
        super().__init__()
        self.split, self.boundary_id, self.seed, self.truncation = split, boundary_id, seed, truncation
        total = len(split.tokens_N)
        self.block_size = min(block_size, total)
        self.rows = max(1, min(batch_tokens // block_size, total // self.block_size))
        self._planned = -1
        self._edges = np.zeros(1, np.int64)

    def _plan(self) -> np.ndarray:
        """Where the epoch's batches begin and end in every stream."""
        rng = np.random.default_rng([self.seed, self.epoch])
        size, block = len(self.split.tokens_N) // self.rows, self.block_size
        # Streams begin elsewhere each epoch, so that their cold starts do.
        phase = int(rng.integers(0, min(block, size - block + 1)))
        if self.truncation == "regular":
            return np.arange(phase, size + 1, block)
        lengths = rng.integers(max(1, block // 2), block + block // 2 + 1, 2 * size // block + 1)
        edges = phase + np.concatenate([[0], np.cumsum(lengths)])
        return np.append(edges[edges < size], size)

    def next(self) -> Batch:
        if self._planned != self.epoch:
            self._edges, self._planned = self._plan(), self.epoch
        if self.cursor >= len(self._edges) - 1:
            self.epoch, self.cursor = self.epoch + 1, 0
            return self.next()
        begin, end = self._edges[self.cursor : self.cursor + 2]
        first = np.arange(self.rows) * (len(self.split.tokens_N) // self.rows)
        continues = self.cursor > 0
        self.cursor += 1
        rows = Rows(first + begin, first + begin, first + end)
        return to_batch(self.split, rows, self.boundary_id, continues)


class OrderedLoader(Loader):
    """One pass over everything, for counting: documents by length, a long one in pieces."""

    def __init__(self, split: Split, boundary_id: int, batch_tokens: int) -> None:
        super().__init__()
        self.split, self.boundary_id = split, boundary_id
        sizes = split.ends_D - split.starts_D
        self._batches: list[tuple[Rows, bool]] = []
        short = np.flatnonzero(sizes <= batch_tokens)
        self._plan_short(short[np.argsort(sizes[short], kind="stable")], batch_tokens)
        for document in np.flatnonzero(sizes > batch_tokens):
            self._plan_long(int(split.starts_D[document]), int(split.ends_D[document]), batch_tokens)

    def _plan_short(self, documents: np.ndarray, batch_tokens: int) -> None:
        sizes = (self.split.ends_D - self.split.starts_D)[documents]
        nth = (np.cumsum(sizes) - sizes) // batch_tokens
        for part in np.split(documents, np.flatnonzero(np.diff(nth)) + 1) if len(documents) else []:
            begin = self.split.starts_D[part]
            self._batches.append((Rows(begin, begin, self.split.ends_D[part]), False))

    def _plan_long(self, begin: int, end: int, batch_tokens: int) -> None:
        for at in range(begin, end, batch_tokens):
            edge = np.array([at])
            rows = Rows(edge, edge, np.array([min(at + batch_tokens, end)]))
            self._batches.append((rows, at > begin))

    def __iter__(self) -> Iterator[Batch]:
        while self.cursor < len(self._batches):
            yield self.next()

    def next(self) -> Batch:
        if self.cursor >= len(self._batches):
            raise StopIteration
        rows, continues = self._batches[self.cursor]
        self.cursor += 1
        return to_batch(self.split, rows, self.boundary_id, continues)
