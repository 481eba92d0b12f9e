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
from makemore.models.ngrams.table import ROOT
from makemore.models.smoothing import SmoothedNgrams
from makemore.runtime.native import CLibrary, address, structure
from makemore.runtime.process import release_memory
from makemore.sampling.decoders.base import FastDecoder, fast_decoder, to_array
from makemore.types import Floats, Floats32, Ints, State

_Trie = structure(
    "Trie",
    **dict.fromkeys(("contexts", "boundary", "token_bytes"), c_int64),
    **dict.fromkeys(("tokens", "first", "suffixes", "shares", "rests", "unigram"), c_void_p),
)
LIBRARY = CLibrary(
    Path(__file__).with_name("count.c"),
    {"sample": (None, POINTER(_Trie), c_int64, c_void_p, c_void_p, c_void_p)},
    {"trie": _Trie},
)


class Trie:
    """Steps from context to context in the trie of smoothed n-grams."""

    def __init__(self, smoothed: SmoothedNgrams) -> None:
        self.table, self.rests_C = smoothed.table, smoothed.backoff_weights_C
        self.shares_G, self.unigram_V = smoothed.shares_G, smoothed.unigram_1V[0]
        release_memory()  # left over from scoring
        self.suffixes_G = self.table.suffixes()
        self.n_contexts = self.table.starts[self.table.order]
        """N-grams from this node on are too long to be contexts."""

    def as_struct(self) -> ctypes.Structure:
        """The trie as a C struct."""
        table = self.table
        sizes = (self.n_contexts, table.boundary_id, table.tokens_G.itemsize)
        nodes = (table.tokens_G, table.first_C, self.suffixes_G)
        return _Trie(*sizes, *map(address, (*nodes, self.shares_G, self.rests_C, self.unigram_V)))

    def as_context(self, nodes_B: Ints) -> Ints:
        """Drop the first token of nodes that are too long to be contexts."""
        return np.where(nodes_B >= self.n_contexts, self.suffixes_G.take(nodes_B), nodes_B)

    def advance(self, nodes_B: Ints, ids_B: Ints) -> Ints:
        """Longest known contexts after one more token."""
        contexts_B = nodes_B.astype(np.int32)
        next_B = self.table.find(contexts_B, ids_B)
        while len(missing := np.flatnonzero(next_B < 0)):
            contexts_B[missing] = self.suffixes_G[contexts_B[missing]]
            next_B[missing] = self.table.find(contexts_B[missing], ids_B[missing])
        return self.as_context(next_B.astype(np.int64))

    def distribution(self, node: int) -> Floats:
        """Distribution (V,) of the next token, built from the shortest context to the longest."""
        path = []
        while node != ROOT:
            path.append(node)
            node = int(self.suffixes_G[node])
        p_V = self.unigram_V.copy()
        for node in reversed(path):
            children = self.table.children(slice(node, node + 1))
            p_V *= self.rests_C[node]
            p_V[self.table.tokens_G[children]] += self.shares_G[children]
        return p_V

    def sample(self, node: int, u: float) -> tuple[int, int]:
        """Sample a child by ``u`` in [0, 1); also returns the node it belongs to.

        A number below the total share of a context's children picks one of them; otherwise the remainder is
        passed on to the next shorter context.
        """
        while node != ROOT and u >= (seen_share := 1 - float(self.rests_C[node])):
            u = (u - seen_share) / float(self.rests_C[node])
            node = int(self.suffixes_G[node])
        children = self.table.children(slice(node, node + 1))
        shares = self.unigram_V if node == ROOT else self.shares_G[children].astype(np.float64)
        # Rounding may overshoot the last child.
        picked = min(int(shares.cumsum().searchsorted(u, side="right")), len(shares) - 1)
        return children.start + picked, node


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
        sampled = map(self.trie.sample, self.nodes.tolist(), uniform_B.tolist())
        children_B, parents_B = np.array(list(sampled)).reshape(-1, 2).T
        ids_B = self.trie.table.tokens_G[children_B].astype(np.int64)
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
        self.code, self.as_struct = code, trie.as_struct()

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
        _tries[smoothed] = Trie(smoothed)
    code = LIBRARY.load()
    trie = _tries[smoothed]
    return CountDecoder(model, trie) if code is None else CompiledCountDecoder(model, trie, code)
