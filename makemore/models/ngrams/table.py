"""A table of n-grams and their counts: a trie in flat arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from makemore.models.ngrams.packed import PackedCounts, Tokens
from makemore.types import Ints

Nodes = NDArray[np.int32]

ABSENT = -1
"""Marks a token or context before the start of the row or document."""
UNSEEN = -2
"""Marks a context that isn't in the table."""
ROOT = 0
"""The node of the empty n-gram."""
FIND_CHUNK_SIZE = 1 << 16
"""N-grams looked up at a time, sized to fit the CPU's cache."""
BLOCK_SIZE = 1 << 16
"""Contexts whose continuations are processed at a time; a whole level's temporary arrays would be large."""


@dataclass(frozen=True, eq=False)
class NgramTable:
    """All n-grams up to some order and their counts.

    An n-gram is a node of a trie. Nodes are numbered by length, and n-grams of one length are sorted by their
    tokens: node 0 is the empty n-gram, nodes 1 to V are the tokens, seen or not. So a context's
    continuations, its children, are adjacent, and the first nodes are the table of a lower order. A document
    begins with the boundary token, which no context crosses.

    G nodes, C contexts (nodes shorter than the order).
    """

    vocab_size: int
    boundary_id: int
    sizes: tuple[int, ...]
    """Number of n-grams of each length, from 1."""
    tokens_G: Tokens
    """(G,): each n-gram's last token, 0 for the root."""
    first_C: Nodes
    """(C + 1,): the first child of each context; those of context ``c`` end before ``first_C[c + 1]``."""
    counts_G: PackedCounts
    """(G,): 0 for the root and for an n-gram that isn't a target, only (part of) a context."""

    @property
    def order(self) -> int:
        return len(self.sizes)

    @property
    def size(self) -> int:
        """Number of n-grams of all lengths."""
        return sum(self.sizes)

    @cached_property
    def starts(self) -> list[int]:
        """The first node of each length from 0; at the end, the number of nodes."""
        return np.cumsum([0, 1, *self.sizes]).tolist()

    def level(self, n: int) -> slice:
        """The nodes of the n-grams of length ``n``."""
        return slice(self.starts[n], self.starts[n + 1])

    def blocks(self, n: int) -> Iterator[tuple[slice, slice]]:
        """Cut the n-grams of length ``n`` into blocks: nodes of contexts, and of their continuations."""
        for begin in range(self.starts[n - 1], self.starts[n], BLOCK_SIZE):
            contexts = slice(begin, min(begin + BLOCK_SIZE, self.starts[n]))
            yield contexts, self.children(contexts)

    def children(self, contexts: slice) -> slice:
        """Nodes of the continuations of adjacent contexts."""
        return slice(int(self.first_C[contexts.start]), int(self.first_C[contexts.stop]))

    def parents(self, contexts: slice) -> Ints:
        """For each continuation of adjacent contexts, its context, numbered from 0."""
        n_children = np.diff(self.first_C[contexts.start : contexts.stop + 1])
        return np.repeat(np.arange(len(n_children)), n_children)

    def counts(self, n: int) -> Ints:
        """Counts of the n-grams of length ``n``."""
        return self.counts_G.unpack(self.level(n))

    def keys(self, n: int) -> Ints:
        """Strictly increasing keys of the n-grams of length ``n``: the context, numbered within its level,
        times the size of the vocabulary, plus the last token."""
        return self.parents(self.level(n - 1)) * self.vocab_size + self.tokens_G[self.level(n)]

    def cut(self, order: int) -> NgramTable:
        """The table of an order that isn't higher."""
        if order == self.order:
            return self
        n_nodes, n_contexts = self.starts[order + 1], self.starts[order]
        tokens_G, first_C = self.tokens_G[:n_nodes].copy(), self.first_C[: n_contexts + 1].copy()
        arrays = (tokens_G, first_C, self.counts_G.cut(n_nodes))
        table = NgramTable(self.vocab_size, self.boundary_id, self.sizes[:order], *arrays)
        if "continuations_C" in vars(self):
            vars(table)["continuations_C"] = self.continuations_C.cut(n_contexts)
        return table

    def renumbered(self, n: int, index_map: Nodes, begin: int, end: int) -> tuple[Ints, slice]:
        """Keys of the n-grams of length ``n`` whose contexts have the numbers ``begin`` to ``end``, which
        count as 0, and their nodes.

        Args:
            index_map: Increasing numbers of this table's contexts. So the keys are sorted, too.
        """
        first, last = index_map.searchsorted(np.array([begin, end], np.int32)).tolist()
        contexts = slice(self.starts[n - 1] + first, self.starts[n - 1] + last)
        grams = self.children(contexts)
        keys = index_map[first:last].astype(np.int64)[self.parents(contexts)]
        keys -= begin
        keys *= self.vocab_size
        keys += self.tokens_G[grams]
        return keys, grams

    def find(self, contexts_N: Nodes, tokens_N: Tokens) -> Nodes:
        """Nodes (N,) of contexts, each extended by one token.

        ABSENT where the context is ABSENT, UNSEEN where the table lacks the n-gram.
        """
        result_N = np.minimum(contexts_N, ABSENT)
        for i in range(0, len(contexts_N), FIND_CHUNK_SIZE):
            chunk = slice(i, i + FIND_CHUNK_SIZE)
            known = i + np.flatnonzero(contexts_N[chunk] >= 0)
            result_N[known] = self._find_children(contexts_N[known], tokens_N[known])
        return result_N

    def _find_children(self, contexts_N: Nodes, tokens_N: Tokens) -> Ints:
        """Binary search for tokens among the children of known contexts."""
        low_N = self.first_C.take(contexts_N).astype(np.int64)
        end_N = self.first_C.take(contexts_N + 1).astype(np.int64)
        step = 1 << int((end_N - low_N).max(initial=0)).bit_length()
        while step := step >> 1:
            # Skip `step` children whose last token is too small.
            probe_N = low_N + (step - 1)
            skips_N = self.tokens_G.take(probe_N, mode="clip") < tokens_N
            skips_N &= probe_N < end_N
            low_N += skips_N * step
        is_child_N = self.tokens_G.take(low_N, mode="clip") == tokens_N
        is_child_N &= low_N < end_N
        return np.where(is_child_N, low_N, UNSEEN)

    def contexts_by_length(self, tokens_N: Tokens) -> Iterator[Nodes]:
        """Nodes (N,) of contexts of 0 … order - 1 tokens ending at each position.

        ``tokens_N``: int32 or int64; ABSENT separates rows.
        """
        yield np.zeros(len(tokens_N), np.int32)
        starts_N = (tokens_N == self.boundary_id) | (tokens_N == ABSENT)
        contexts_N = np.where(tokens_N == ABSENT, ABSENT, tokens_N + 1).astype(np.int32)
        for n in range(1, self.order):
            yield contexts_N
            if n < self.order - 1:
                previous_N = np.append(np.int32(ABSENT), contexts_N[:-1])
                previous_N[starts_N] = ABSENT
                contexts_N = self.find(previous_N, tokens_N)

    def contexts(self, tokens_N: Tokens) -> list[Nodes]:
        """A list of ``contexts_by_length``."""
        return list(self.contexts_by_length(tokens_N))

    def suffixes(self) -> Nodes:
        """(G,): node of each n-gram without its first token; for a token, the root.

        Raises ValueError if a suffix is missing from the table, which counting a text never causes.
        """
        suffixes_G = np.zeros(self.size + 1, np.int32)
        for n in range(2, self.order + 1):
            for contexts, grams in self.blocks(n):
                shorter = suffixes_G[contexts][self.parents(contexts)]
                suffixes_G[grams] = self.find(shorter, self.tokens_G[grams])
            if suffixes_G[self.level(n)].min(initial=0) < 0:
                raise ValueError(f"{n}-grams whose {n - 1}-gram suffixes are missing")
        return suffixes_G

    @cached_property
    def continuations_C(self) -> PackedCounts:
        """(C,): for each n-gram below the order, the number of distinct tokens seen before it.

        N-grams that begin a document have no preceding token and use their plain counts.
        """
        suffixes_G = self.suffixes()
        levels = [PackedCounts.pack(np.zeros(1, np.int64))]
        starting = slice(self.boundary_id + 1, self.boundary_id + 2)
        for n in range(1, self.order):
            start, result = self.starts[n], np.zeros(self.sizes[n - 1], np.int32)
            for _, longer in self.blocks(n + 1):
                seen = suffixes_G[longer][self.counts_G.bytes_G[longer] > 0]
                np.add.at(result, seen - start, 1)
            if n > 1:
                starting = self.children(starting)
                result[starting.start - start : starting.stop - start] = self.counts_G.unpack(starting)
            levels.append(PackedCounts.pack(result))
        return PackedCounts.concatenate(levels)

    def validate(self) -> None:
        """Raise ValueError with the reason if the arrays aren't a valid table."""
        n_contexts, n_nodes = self.starts[-2], self.starts[-1]
        if self.tokens_G.shape != (n_nodes,) or self.first_C.shape != (n_contexts + 1,):
            raise ValueError(f"tokens and first children of {n_nodes} n-grams have the wrong shape")
        if self.counts_G.bytes_G.shape != (n_nodes,):
            raise ValueError(f"{self.counts_G.bytes_G.shape} counts of {n_nodes} n-grams")
        self.counts_G.validate()
        if self.sizes[0] != self.vocab_size:
            raise ValueError(f"table has {self.sizes[0]} tokens, expected {self.vocab_size}")
        if (np.diff(self.first_C) < 0).any() or self.first_C[self.starts[:-1]].tolist() != self.starts[1:]:
            raise ValueError("first children aren't those of a trie")
        if self.tokens_G.min() < 0 or self.tokens_G.max() >= self.vocab_size:
            raise ValueError("tokens outside the vocabulary")
        begins_children = np.zeros(n_nodes + 1, bool)
        begins_children[self.first_C] = True
        if not begins_children[1:-1][self.tokens_G[1:] <= self.tokens_G[:-1]].all():
            raise ValueError("the tokens after a context aren't strictly increasing")
        _ = self.continuations_C
