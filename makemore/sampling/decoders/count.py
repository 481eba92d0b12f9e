"""Smoothed n-grams, one token per row: a walk through the trie of contexts.

Each row is at its longest known context, and each context links to the next shorter one, as in the automaton
of Aho & Corasick (1975). Longer, unseen contexts don't change the distribution.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_int64, c_void_p
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np

from makemore.models.count import Count
from makemore.models.smoothing import SmoothedNgrams
from makemore.runtime.native import CLibrary, address, structure
from makemore.sampling.decoders.base import FastDecoder, fast_decoder, to_array
from makemore.types import Floats, Floats32, Ints, State

ROOT = 0
_Trie = structure(
    "Trie",
    **dict.fromkeys(("inner", "boundary"), c_int64),
    **dict.fromkeys(("tokens", "suffixes", "firsts", "lasts", "rests", "sums"), c_void_p),
)
LIBRARY = CLibrary(
    Path(__file__).with_name("count.c"),
    {"sample": (None, POINTER(_Trie), c_int64, c_void_p, c_void_p, c_void_p)},
    {"trie": _Trie},
)


class Trie:
    """Nodes of all levels, numbered together: 0 is the empty context, then the tokens, then the pairs, …

    A node's children are contiguous, so they and the running sum of their shares are slices.
    """

    def __init__(self, smoothed: SmoothedNgrams, order: int) -> None:
        table, levels = smoothed.table.cut(order), smoothed.levels
        self.vocab_size = size = table.vocab_size
        starts = np.cumsum([0, 1, *map(len, table.keys)])
        self.inner = int(starts[order])
        """First node that is too long to be a context; so are all later nodes."""
        # Sorted, because parents are numbered level by level.
        parents = [keys // size + start for keys, start in zip(table.keys, starts, strict=False)]
        self.keys = np.concatenate([p * size + v.tokens for p, v in zip(parents, levels, strict=True)])
        self.tokens = np.concatenate([[0], *(v.tokens for v in levels)])
        longer = zip(table.suffixes, starts[1:], strict=False)
        self.suffixes = np.concatenate([np.zeros(1 + size, np.int64), *(n + start for n, start in longer)])
        self.backoff_weights = np.concatenate([v.backoff_weights[:-2] for v in levels])
        # The empty context has no shorter one: its children's shares sum to 1.
        self.backoff_weights[ROOT] = 0
        self.shares = np.concatenate([[0.0], smoothed.unigram_1V[0], *(v.shares[:-2] for v in levels[1:])])
        self.sums = np.cumsum(self.shares)
        offsets = zip(levels, starts[1:], strict=False)
        self.first_child = np.concatenate([v.first_child[:-2] + start for v, start in offsets])
        self.lasts = self.first_child + np.concatenate([v.children[:-2] for v in levels]) - 1
        self.sums_before = self.sums[self.first_child - 1]

    def as_struct(self, boundary_id: int) -> ctypes.Structure:
        """The trie as a C struct."""
        arrays = (self.tokens, self.suffixes, self.first_child, self.lasts, self.backoff_weights, self.sums)
        return _Trie(self.inner, boundary_id, *map(address, arrays))

    def as_context(self, nodes_B: Ints) -> Ints:
        """Drop the first token of nodes that are too long to be contexts."""
        return np.where(nodes_B >= self.inner, self.suffixes.take(nodes_B), nodes_B)

    def advance(self, nodes_B: Ints, ids_B: Ints) -> Ints:
        """Longest known contexts after one more token."""
        keys_B = nodes_B * self.vocab_size + ids_B
        index_B = self.keys.searchsorted(keys_B)
        missing = (self.keys.take(index_B, mode="clip") != keys_B).nonzero()[0]
        while len(missing):
            nodes_B = nodes_B.copy()
            nodes_B[missing] = self.suffixes[nodes_B[missing]]
            keys = nodes_B[missing] * self.vocab_size + ids_B[missing]
            index_B[missing] = index = self.keys.searchsorted(keys)
            missing = missing[self.keys.take(index, mode="clip") != keys]
        return self.as_context(index_B + 1)

    def distribution(self, node: int) -> Floats:
        """Distribution (V,) of the next token, built from the shortest context to the longest."""
        path = []
        while node != ROOT:
            path.append(node)
            node = int(self.suffixes[node])
        p_V = self.shares[1 : 1 + self.vocab_size].copy()
        for node in reversed(path):
            children = slice(self.first_child[node], self.lasts[node] + 1)
            p_V *= self.backoff_weights[node]
            p_V[self.tokens[children]] += self.shares[children]
        return p_V

    def sample(self, nodes_B: Ints, uniform_B: Floats) -> tuple[Ints, Ints]:
        """Sample children (B,); also returns the nodes they belong to.

        A number below the total share of a context's children picks one of them; otherwise the remainder is
        passed on to the next shorter context.
        """
        nodes, u = nodes_B, uniform_B
        children_B, parents_B = np.empty_like(nodes_B), np.empty_like(nodes_B)
        rows = np.arange(len(nodes_B))
        while True:
            rests = self.backoff_weights.take(nodes)
            seen_share = 1 - rests
            is_seen = u < seen_share
            is_seen |= nodes == ROOT
            hits, at = rows[is_seen], nodes[is_seen]
            if len(hits):
                child = self.sums.searchsorted(self.sums_before.take(at) + u[is_seen], side="right")
                # Rounding may overshoot the last child.
                children_B[hits] = np.minimum(
                    np.maximum(child, self.first_child.take(at)), self.lasts.take(at)
                )
                parents_B[hits] = at
                if len(hits) == len(rows):
                    return children_B, parents_B
            is_unseen = ~is_seen
            rows = rows[is_unseen]
            u = (u[is_unseen] - seen_share[is_unseen]) / rests[is_unseen]
            nodes = self.suffixes.take(nodes[is_unseen])


class CountDecoder(FastDecoder):
    """Keeps the node of each row's longest known context."""

    duplicates_single_row = False
    supports_sampling = True

    def __init__(self, model: Count, trie: Trie) -> None:
        self.boundary_id, self.trie = model.boundary_id, trie

    def load(self, state: State) -> None:
        rows_BL = to_array(state[0])
        self.nodes = np.full(len(rows_BL), ROOT)
        for column in rows_BL.T:
            present = (column >= 0).nonzero()[0]  # -1: no token before the document
            self.nodes[present] = self._advance(self.nodes[present], column[present])

    def _advance(self, nodes_B: Ints, ids_B: Ints) -> Ints:
        begins = ids_B == self.boundary_id
        return self.trie.advance(np.where(begins, ROOT, nodes_B), ids_B)

    def step(self, ids_B: Ints) -> Floats32:
        self.nodes = self._advance(self.nodes, ids_B)
        p_BV = np.stack([self.trie.distribution(node) for node in self.nodes.tolist()])
        with np.errstate(divide="ignore"):  # without smoothing, log 0
            return np.log(p_BV, out=p_BV).astype(np.float32)

    def sample(self, uniform_B: Floats) -> Ints:
        children_B, parents_B = self.trie.sample(self.nodes, uniform_B)
        ids_B = self.trie.tokens.take(children_B)
        # A child of the longest context is the next context; other rows are looked up.
        after_B = self.trie.as_context(children_B)
        lookups = ((parents_B != self.nodes) | (ids_B == self.boundary_id)).nonzero()[0]
        if len(lookups):
            after_B[lookups] = self._advance(self.nodes[lookups], ids_B[lookups])
        self.nodes = after_B
        return ids_B

    def select_rows(self, rows_K: Ints) -> None:
        self.nodes = self.nodes[rows_K]


class CompiledCountDecoder(CountDecoder):
    """Samples in C, which releases the GIL."""

    def __init__(self, model: Count, trie: Trie, code: ctypes.CDLL) -> None:
        """``code``: the loaded ``LIBRARY``."""
        super().__init__(model, trie)
        self.code, self.as_struct = code, trie.as_struct(model.boundary_id)

    def sample(self, uniform_B: Floats) -> Ints:
        uniform_B, self.nodes = np.ascontiguousarray(uniform_B), np.ascontiguousarray(self.nodes)
        ids_B = np.empty_like(self.nodes)
        arrays = (self.nodes, uniform_B, ids_B)
        self.code.sample(byref(self.as_struct), len(ids_B), *map(address, arrays))
        return ids_B


_tries: WeakKeyDictionary[SmoothedNgrams, Trie] = WeakKeyDictionary()


@fast_decoder.register(Count)
def _decoder(model: Count) -> FastDecoder | None:
    smoothed = model.smoothed
    if not smoothed.backs_off:
        return None
    if smoothed not in _tries:
        _tries[smoothed] = Trie(smoothed, model.order)
    code = LIBRARY.load()
    trie = _tries[smoothed]
    return CountDecoder(model, trie) if code is None else CompiledCountDecoder(model, trie, code)
