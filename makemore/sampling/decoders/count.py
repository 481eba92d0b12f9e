"""Smoothed n-grams, one token a row: a walk through the trie of contexts.

A row is at its longest known context; each context knows the next shorter one, as in the automaton
of Aho & Corasick (1975). Longer contexts, which weren't seen, would change nothing.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_int64, c_void_p
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from makemore.models.count import Count, Smoothed
from makemore.runtime.native import CLibrary, address, structure
from makemore.sampling.decoders.base import Floats, Ints, Stepper, array, fast_decoder
from makemore.types import State

ROOT = 0
_Trie = structure(
    "Trie",
    **dict.fromkeys(("inner", "boundary"), c_int64),
    **dict.fromkeys(("tokens", "suffixes", "firsts", "lasts", "rests", "sums"), c_void_p),
)
LIBRARY = CLibrary(
    Path(__file__).with_name("count.c"),
    {"draw": (None, POINTER(_Trie), c_int64, c_void_p, c_void_p, c_void_p)},
    {"trie": _Trie},
)


class Trie:
    """Nodes of all levels in one numbering: 0 is the empty context, then the tokens, then the pairs, …

    A node's children lie side by side, so that they, and the running sum of their shares, are a slice.
    """

    def __init__(self, smoothed: Smoothed, order: int) -> None:
        table, levels = smoothed.table.cut(order), smoothed.levels
        self.vocab_size = size = table.vocab_size
        starts = np.cumsum([0, 1, *map(len, table.keys)])
        self.inner = int(starts[order])
        """Nodes from here on are too long to be a context."""
        # Sorted, because parents are numbered level by level.
        parents = [keys // size + start for keys, start in zip(table.keys, starts, strict=False)]
        self.keys = np.concatenate([p * size + v.tokens for p, v in zip(parents, levels, strict=True)])
        self.tokens = np.concatenate([[0], *(v.tokens for v in levels)])
        longer = zip(table.suffixes, starts[1:], strict=False)
        self.suffixes = np.concatenate([np.zeros(1 + size, np.int64), *(n + start for n, start in longer)])
        self.rests = np.concatenate([v.rests[:-2] for v in levels])
        # Nothing is shorter than the empty context: its children's shares are all of the distribution.
        self.rests[ROOT] = 0
        self.shares = np.concatenate([[0.0], smoothed.unigram_1V[0], *(v.shares[:-2] for v in levels[1:])])
        self.sums = np.cumsum(self.shares)
        offsets = zip(levels, starts[1:], strict=False)
        self.firsts = np.concatenate([v.firsts[:-2] + start for v, start in offsets])
        self.lasts = self.firsts + np.concatenate([v.children[:-2] for v in levels]) - 1
        self.sums_before = self.sums[self.firsts - 1]

    def described(self, boundary_id: int) -> ctypes.Structure:
        """As C reads it."""
        arrays = (self.tokens, self.suffixes, self.firsts, self.lasts, self.rests, self.sums)
        return _Trie(self.inner, boundary_id, *map(address, arrays))

    def as_context(self, nodes_B: Ints) -> Ints:
        """Nodes, less the first token of those that are too long."""
        return np.where(nodes_B >= self.inner, self.suffixes.take(nodes_B), nodes_B)

    def after(self, nodes_B: Ints, ids_B: Ints) -> Ints:
        """The longest known contexts after one more token."""
        wanted_B = nodes_B * self.vocab_size + ids_B
        at_B = self.keys.searchsorted(wanted_B)
        missing = (self.keys.take(at_B, mode="clip") != wanted_B).nonzero()[0]
        while len(missing):
            nodes_B = nodes_B.copy()
            nodes_B[missing] = self.suffixes[nodes_B[missing]]
            wanted = nodes_B[missing] * self.vocab_size + ids_B[missing]
            at_B[missing] = at = self.keys.searchsorted(wanted)
            missing = missing[self.keys.take(at, mode="clip") != wanted]
        return self.as_context(at_B + 1)

    def distribution(self, node: int) -> NDArray[np.float64]:
        """(V,), from the shortest context to the longest."""
        path = []
        while node != ROOT:
            path.append(node)
            node = int(self.suffixes[node])
        p_V = self.shares[1 : 1 + self.vocab_size].copy()
        for node in reversed(path):
            seen = slice(self.firsts[node], self.lasts[node] + 1)
            p_V *= self.rests[node]
            p_V[self.tokens[seen]] += self.shares[seen]
        return p_V

    def draw(self, nodes_B: Ints, uniform_B: NDArray[np.float64]) -> tuple[Ints, Ints]:
        """The children (B,) that were drawn, and of which nodes.

        A number below the share of what was seen after a context picks among that; what is left of it
        goes on to the next shorter context.
        """
        nodes, u = nodes_B, uniform_B
        picked_B, of_B = np.empty_like(nodes_B), np.empty_like(nodes_B)
        rows = np.arange(len(nodes_B))
        while True:
            rests = self.rests.take(nodes)
            kept = 1 - rests
            seen = u < kept
            seen |= nodes == ROOT
            hit, of = rows[seen], nodes[seen]
            if len(hit):
                place = self.sums.searchsorted(self.sums_before.take(of) + u[seen], side="right")
                # Rounding may lead beyond the last one.
                picked_B[hit] = np.minimum(np.maximum(place, self.firsts.take(of)), self.lasts.take(of))
                of_B[hit] = of
                if len(hit) == len(rows):
                    return picked_B, of_B
            left = ~seen
            rows = rows[left]
            u = (u[left] - kept[left]) / rests[left]
            nodes = self.suffixes.take(nodes[left])


class CountStepper(Stepper):
    """Each row is the node of its longest known context."""

    twins = False
    can_draw = True

    def __init__(self, model: Count, trie: Trie) -> None:
        self.boundary_id, self.trie = model.boundary_id, trie

    def load(self, state: State) -> None:
        rows_BL = array(state[0])
        self.nodes = np.full(len(rows_BL), ROOT)
        for column in rows_BL.T:
            known = (column >= 0).nonzero()[0]  # before a document there is no token
            self.nodes[known] = self._after(self.nodes[known], column[known])

    def _after(self, nodes_B: Ints, ids_B: Ints) -> Ints:
        begins = ids_B == self.boundary_id
        return self.trie.after(np.where(begins, ROOT, nodes_B), ids_B)

    def step(self, ids_B: Ints) -> Floats:
        self.nodes = self._after(self.nodes, ids_B)
        p_BV = np.stack([self.trie.distribution(node) for node in self.nodes.tolist()])
        with np.errstate(divide="ignore"):  # without smoothing, log 0
            return np.log(p_BV, out=p_BV).astype(np.float32)

    def draw(self, uniform_B: NDArray[np.float64]) -> Ints:
        picked_B, of_B = self.trie.draw(self.nodes, uniform_B)
        ids_B = self.trie.tokens.take(picked_B)
        # What was picked from the longest context leads on; other rows look theirs up.
        after_B = self.trie.as_context(picked_B)
        fell = ((of_B != self.nodes) | (ids_B == self.boundary_id)).nonzero()[0]
        if len(fell):
            after_B[fell] = self._after(self.nodes[fell], ids_B[fell])
        self.nodes = after_B
        return ids_B

    def keep(self, rows_K: Ints) -> None:
        self.nodes = self.nodes[rows_K]


class CompiledCountStepper(CountStepper):
    """Draws in C, which leaves Python's lock to other threads."""

    def __init__(self, model: Count, trie: Trie, code: ctypes.CDLL) -> None:
        """``code``: the loaded ``LIBRARY``."""
        super().__init__(model, trie)
        self.code, self.described = code, trie.described(model.boundary_id)

    def draw(self, uniform_B: NDArray[np.float64]) -> Ints:
        uniform_B, self.nodes = np.ascontiguousarray(uniform_B), np.ascontiguousarray(self.nodes)
        ids_B = np.empty_like(self.nodes)
        arrays = (self.nodes, uniform_B, ids_B)
        self.code.draw(byref(self.described), len(ids_B), *map(address, arrays))
        return ids_B


_tries: WeakKeyDictionary[Smoothed, Trie] = WeakKeyDictionary()


@fast_decoder.register(Count)
def _decoder(model: Count) -> Stepper | None:
    smoothed = model.smoothed
    if not smoothed.backs_off:
        return None
    if smoothed not in _tries:
        _tries[smoothed] = Trie(smoothed, model.order)
    code = LIBRARY.load()
    trie = _tries[smoothed]
    return CountStepper(model, trie) if code is None else CompiledCountStepper(model, trie, code)
