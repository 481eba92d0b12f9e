"""Build tables of n-grams: from their levels, and by merging."""

from __future__ import annotations

import numpy as np

from makemore.errors import UserError
from makemore.models.ngrams.packed import LARGE, PackedCounts, token_dtype
from makemore.models.ngrams.table import ABSENT, BLOCK_SIZE, NgramTable
from makemore.types import Ints

MAX_NODES = 1 << 31
"""Nodes have 32-bit numbers."""


class TableBuilder:
    """Builds a table of at most ``capacity`` n-grams from its levels, the shortest n-grams first.

    Memory that isn't filled isn't used either: the system only provides pages that are written to.
    """

    def __init__(self, vocab_size: int, boundary_id: int, capacity: int) -> None:
        self.vocab_size, self.boundary_id = vocab_size, boundary_id
        self._tokens_G = np.empty(1 + capacity, token_dtype(vocab_size))
        self._first_C = np.empty(2 + capacity, np.int32)
        self._bytes_G = np.empty(1 + capacity, np.uint8)
        self._tokens_G[0] = self._bytes_G[0] = 0
        self._large: list[Ints] = []
        self._sizes: list[int] = []
        self.size = self._n_contexts = 0

    def add(self, keys: Ints, counts: Ints, n_contexts: int) -> None:
        """Add the n-grams of the next contexts: keys as in ``NgramTable.keys``, from the first of these.

        Raises UserError if there are more n-grams than can be numbered.
        """
        begin, end = 1 + self.size, 1 + self.size + len(keys)
        if end >= MAX_NODES:
            raise UserError(f"more than {MAX_NODES:,} n-grams; lower model.order or model.max_order")
        nodes, self._tokens_G[begin:end] = np.divmod(keys, self.vocab_size)
        n_children = np.bincount(nodes, minlength=n_contexts)
        first = self._first_C[self._n_contexts : self._n_contexts + n_contexts]
        first[:] = begin + np.cumsum(n_children) - n_children
        packed = PackedCounts.pack(counts)
        self._bytes_G[begin:end] = packed.bytes_G
        self._large.append(packed.large)
        self.size += len(keys)
        self._n_contexts += n_contexts

    def end_level(self) -> None:
        """End the n-grams of one length."""
        self._sizes.append(self.size - sum(self._sizes))

    def add_level(self, keys: Ints, counts: Ints) -> None:
        """Add all n-grams of the next length."""
        self.add(keys, counts, self._sizes[-1] if self._sizes else 1)
        self.end_level()

    def build(self) -> NgramTable:
        """The table of all levels that have ended."""
        n_nodes = 1 + sum(self._sizes)
        n_contexts = n_nodes - self._sizes[-1]
        self._first_C[n_contexts] = n_nodes
        bytes_G = self._bytes_G[:n_nodes]
        large = np.concatenate(self._large)[: np.count_nonzero(bytes_G == LARGE)]
        arrays = (self._tokens_G[:n_nodes], self._first_C[: n_contexts + 1], PackedCounts(bytes_G, large))
        return NgramTable(self.vocab_size, self.boundary_id, tuple(self._sizes), *arrays)


def empty_table(order: int, vocab_size: int, boundary_id: int) -> NgramTable:
    """The table of an empty text, with every bigram that begins a document: a document's start always has
    a distribution of its own."""
    builder = TableBuilder(vocab_size, boundary_id, 2 * vocab_size)
    builder.add_level(np.arange(vocab_size), np.zeros(vocab_size, np.int64))
    for n in range(2, order + 1):
        keys = boundary_id * vocab_size + np.delete(np.arange(vocab_size), boundary_id)
        keys = keys if n == 2 else keys[:0]
        builder.add_level(keys, np.zeros_like(keys))
    return builder.build()


def merge_tables(one: NgramTable, other: NgramTable, max_size: int | None = None) -> NgramTable:
    """The sum of two tables of the same vocabulary and boundary token.

    It has the lower of their orders or, if these were more than ``max_size`` n-grams, a lower order.
    """
    builder = TableBuilder(one.vocab_size, one.boundary_id, one.size + other.size)
    tables = (one, other)
    # The merged number of each context of a table, within its level.
    index_maps = [np.zeros(1, np.int32)] * 2
    n_contexts = 1
    for n in range(1, min(one.order, other.order) + 1):
        new_maps = [np.empty(table.sizes[n - 1], np.int32) for table in tables]
        n_merged = 0
        for begin in range(0, n_contexts, BLOCK_SIZE):
            end = min(begin + BLOCK_SIZE, n_contexts)
            parts = [
                table.renumbered(n, index_map, begin, end)
                for table, index_map in zip(tables, index_maps, strict=True)
            ]
            keys = np.sort(np.concatenate([keys for keys, _ in parts]), kind="stable")
            keys = keys[np.diff(keys, prepend=ABSENT) != 0]
            counts = np.zeros(len(keys), np.int64)
            for table, new_map, (part_keys, grams) in zip(tables, new_maps, parts, strict=True):
                index = np.searchsorted(keys, part_keys)
                counts[index] += table.counts_G.unpack(grams)
                new_map[grams.start - table.starts[n] : grams.stop - table.starts[n]] = n_merged + index
            builder.add(keys, counts, end - begin)
            n_merged += len(keys)
            if max_size and n > 1 and builder.size > max_size:
                return builder.build()
        builder.end_level()
        index_maps, n_contexts = new_maps, n_merged
    return builder.build()
