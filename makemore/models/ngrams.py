"""Counts of n-grams as a forward trie in flat sorted arrays: exact, without hashing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from makemore.types import IGNORE_INDEX

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ABSENT = -1
"""In place of a token or context that would lie before the row or the document."""
UNSEEN = -2
"""In place of a context that isn't in the table."""
COUNT_AT_ONCE = 1 << 21
"""Tokens gathered before they are counted."""


@dataclass(frozen=True)
class NgramTable:
    """Every n-gram up to some order, and how often it was seen.

    Level ``m`` (index ``m - 1`` of both lists) holds the m-grams sorted by key, which is
    ``node * vocab_size + token``: ``token`` is the last one, ``node`` the index of the others in
    the level below (0 at level 1, where each token of the vocabulary has a key, seen or not).
    So a context's continuations lie side by side, and the levels up to ``m`` are the table of
    order ``m``. A document begins with the boundary token, and no context reaches across one.
    """

    vocab_size: int
    boundary_id: int
    keys: list[Ints]
    counts: list[Ints]
    """Zero for an n-gram that was only seen as context."""

    @classmethod
    def empty(cls, order: int, vocab_size: int, boundary_id: int) -> Self:
        """The table of a text without tokens."""
        keys = [np.arange(size) for size in [vocab_size] + [0] * (order - 1)]
        return cls(vocab_size, boundary_id, keys, [np.zeros_like(k) for k in keys])

    @classmethod
    def count(cls, order: int, vocab_size: int, boundary_id: int, inputs_N: Ints, targets_N: Ints) -> Self:
        """The n-grams that end in each target and whose context ends in the input beside it.

        An input of ABSENT separates rows. A target of IGNORE_INDEX isn't counted, but the inputs
        around it are still context of what follows.
        """
        table = cls.empty(order, vocab_size, boundary_id)
        after_N = np.append(inputs_N[1:], ABSENT)
        after_N[after_N == boundary_id] = ABSENT
        counted_N = targets_N != IGNORE_INDEX
        last_N = np.where(counted_N, targets_N, after_N)
        table.counts[0][:] = np.bincount(targets_N[counted_N], minlength=vocab_size)
        goes_on_N = (after_N != ABSENT) & (after_N == last_N)
        # An n-gram as one number is sorted several times as fast as level upon level.
        fill = _fill_packed if (vocab_size + 1) ** order < 2**62 else _fill_by_level
        fill(table, inputs_N, last_N, goes_on_N, counted_N)
        return table

    @property
    def order(self) -> int:
        return len(self.keys)

    @property
    def size(self) -> int:
        """N-grams of all lengths."""
        return sum(map(len, self.keys))

    def cut(self, order: int) -> NgramTable:
        """The table of a lower order; it shares this one's arrays."""
        return NgramTable(self.vocab_size, self.boundary_id, self.keys[:order], self.counts[:order])

    def merge(self, other: NgramTable) -> NgramTable:
        """The table of both texts: counts are sums. Tables must agree in all but the counts."""
        merged = NgramTable.empty(self.order, self.vocab_size, self.boundary_id)
        tables = (self, other)
        places = [np.zeros(1, np.int64)] * 2
        for level in range(self.order):
            # Contexts keep their order when they move, so each table's keys stay sorted.
            moved = []
            for table, place in zip(tables, places, strict=True):
                nodes, tokens = table.split_keys(level)
                moved.append(place[nodes] * self.vocab_size + tokens)
            keys = _distinct(np.sort(np.concatenate(moved), kind="stable"))
            places = [np.searchsorted(keys, m) for m in moved]
            counts = np.zeros(len(keys), np.int64)
            for table, place in zip(tables, places, strict=True):
                counts[place] += table.counts[level]
            merged.keys[level], merged.counts[level] = keys, counts
        return merged

    def split_keys(self, level: int) -> tuple[Ints, Ints]:
        """Of each n-gram of ``level`` (from 0): its context's node and its last token."""
        nodes = self.keys[level] // self.vocab_size
        return nodes, self.keys[level] - nodes * self.vocab_size

    def find(self, level: int, contexts_N: Ints, tokens_N: Ints) -> Ints:
        """Nodes in ``level`` (from 0) of contexts of the level below, each with one more token.

        ABSENT where the context is, UNSEEN where the table lacks the n-gram.
        """
        if level == 0:
            return tokens_N
        missing_N = np.where(contexts_N == ABSENT, ABSENT, UNSEEN)
        keys = self.keys[level]
        if not len(keys):
            return missing_N
        wanted_N = contexts_N * self.vocab_size + tokens_N
        place_N = np.minimum(np.searchsorted(keys, wanted_N), len(keys) - 1)
        return np.where((contexts_N >= 0) & (keys[place_N] == wanted_N), place_N, missing_N)

    def contexts(self, tokens_N: Ints) -> list[Ints]:
        """Nodes of the 0, 1, … order - 1 tokens that end at each position, each (N,).

        A token of ABSENT separates rows.
        """
        begins_N = (tokens_N == self.boundary_id) | (tokens_N == ABSENT)
        contexts = [np.zeros_like(tokens_N), tokens_N]
        for level in range(1, self.order - 1):
            before_N = np.append(ABSENT, contexts[-1][:-1])
            before_N[begins_N] = ABSENT
            contexts.append(self.find(level, before_N, tokens_N))
        return contexts[: self.order]

    @cached_property
    def suffixes(self) -> list[Ints]:
        """Of each n-gram of two tokens and more, by level: the node, one level lower, of it less its
        first token.

        Raises ValueError where an n-gram is in the table and its ending isn't, which no text brings
        about.
        """
        result = []
        suffixes = np.zeros(self.vocab_size, np.int64)
        for level in range(1, self.order):
            nodes, tokens = self.split_keys(level)
            suffixes = self.find(level - 1, suffixes[nodes], tokens)
            if suffixes.size and suffixes.min() < 0:
                raise ValueError(f"{level + 1}-grams without the {level}-grams that end them")
            result.append(suffixes)
        return result

    @cached_property
    def continuations(self) -> list[Ints]:
        """Of each n-gram below the highest order, how many different tokens were seen before it.

        Those that begin a document have nothing before them and keep their counts. Raises
        ValueError as ``suffixes`` does.
        """
        result = []
        begins = np.zeros(self.vocab_size, bool)
        for level, suffixes in enumerate(self.suffixes, start=1):
            seen = suffixes[self.counts[level] > 0]
            before = np.bincount(seen, minlength=len(self.keys[level - 1]))
            result.append(np.where(begins, self.counts[level - 1], before))
            nodes = self.split_keys(level)[0]
            begins = begins[nodes] if level > 1 else nodes == self.boundary_id
        return result

    def validate(self) -> None:
        """Raises ValueError, saying what is wrong, where the arrays can't be a table."""
        n_contexts = 1
        for n, (keys, counts) in enumerate(zip(self.keys, self.counts, strict=True), start=1):
            if keys.shape != counts.shape or keys.ndim != 1:
                raise ValueError(f"{n}-grams: {keys.shape} keys and {counts.shape} counts")
            if counts.size and counts.min() < 0:
                raise ValueError(f"{n}-grams: negative counts")
            if (np.diff(keys) <= 0).any():
                raise ValueError(f"{n}-grams: keys out of order")
            if keys.size and not 0 <= keys[0] <= keys[-1] < n_contexts * self.vocab_size:
                raise ValueError(f"{n}-grams: keys without a context")
            n_contexts = len(keys)
        if len(self.keys[0]) != self.vocab_size:
            raise ValueError(f"{len(self.keys[0])} tokens in place of {self.vocab_size}")
        _ = self.continuations


def _fill_by_level(
    table: NgramTable, inputs_N: Ints, last_N: Ints, goes_on_N: Bools, counted_N: Bools
) -> None:
    """Levels from 2 up, each from the one below: n-grams of any size."""
    contexts_N = inputs_N
    index = np.flatnonzero(last_N != ABSENT)
    for level in range(1, table.order):
        index = index[contexts_N[index] != ABSENT]
        table.keys[level], nodes = _unique(contexts_N[index] * table.vocab_size + last_N[index])
        counted = nodes[counted_N[index]]
        table.counts[level] = np.bincount(counted, minlength=len(table.keys[level]))
        # What ends in this target is the context of the next, one token longer.
        goes_on = goes_on_N[index]
        contexts_N = np.full(len(inputs_N), ABSENT)
        contexts_N[index[goes_on] + 1] = nodes[goes_on]


def _fill_packed(table: NgramTable, inputs_N: Ints, last_N: Ints, goes_on_N: Bools, counted_N: Bools) -> None:
    """The same, of n-grams that fit in 62 bits: the longest that begins at each place, as a number whose
    digits are tokens (0: it has ended), is sorted once; shorter n-grams are its leading digits."""
    digits, ignored = _sequences(inputs_N, last_N, goes_on_N, counted_N)
    base, order = table.vocab_size + 1, table.order
    grams = _grams(digits, base, order)
    sorted_N = np.sort(grams)
    sorted_N = sorted_N[np.searchsorted(sorted_N, base ** (order - 1)) :]
    first = np.flatnonzero(np.diff(sorted_N, prepend=ABSENT))
    unique_U, times_U = sorted_N[first], np.diff(np.append(first, len(sorted_N)))
    nodes_U = unique_U // base ** (order - 1) - 1
    for level in range(1, order):
        heads_U = unique_U // base ** (order - 1 - level)
        token_U = heads_U % base - 1
        exists_U = token_U >= 0
        new = np.flatnonzero(exists_U & (np.diff(heads_U, prepend=ABSENT) != 0))
        if not len(new):
            return
        table.keys[level] = nodes_U[new] * table.vocab_size + token_U[new]
        counts = np.add.reduceat(times_U * exists_U, new)
        # What ends in a target that doesn't count was seen as context only.
        begins = ignored[ignored >= level] - level
        context = grams[begins] // base ** (order - 1 - level)
        context = context[context % base > 0]
        counts -= np.bincount(np.searchsorted(heads_U[new], context), minlength=len(new))
        table.counts[level] = counts
        is_new = np.zeros(len(unique_U), np.int64)
        is_new[new] = 1
        nodes_U = np.cumsum(is_new) - 1


def _sequences(inputs_N: Ints, last_N: Ints, goes_on_N: Bools, counted_N: Bools) -> tuple[Ints, Ints]:
    """Tokens plus one, a zero after each unbroken sequence; and the places of those that don't count."""
    ends_N = ~goes_on_N & (inputs_N != ABSENT)
    closing_N = ends_N & (last_N != ABSENT)
    room_N = 1 + ends_N + closing_N
    place_N = np.cumsum(room_N) - room_N
    digits = np.zeros(int(room_N.sum()), np.int64)
    digits[place_N] = inputs_N + 1
    digits[place_N[closing_N] + 1] = last_N[closing_N] + 1
    goes_on = goes_on_N & (inputs_N != ABSENT) & ~counted_N
    return digits, place_N[goes_on] + 1


def _grams(digits: Ints, base: int, order: int) -> Ints:
    """The ``order`` digits that begin at each place as one number, zeros from the first zero on."""
    grams, alive = digits.copy(), digits > 0
    for ahead in range(1, order):
        following = np.append(digits[ahead:], np.zeros(min(ahead, len(digits)), np.int64))
        alive &= following > 0
        grams *= base
        grams += following * alive
    return grams


class NgramCounter:
    """Adds up the n-grams of a text that comes in pieces, in memory of the table's size."""

    def __init__(self, start: NgramTable) -> None:
        self._tables = [start]
        self._pending: list[tuple[Ints, Ints]] = []
        self._n_pending = 0

    def add(self, inputs_N: Ints, targets_N: Ints) -> None:
        """Rows of text, as ``NgramTable.count`` takes them; the last one ends here."""
        self._pending.append((inputs_N, targets_N))
        self._n_pending += len(inputs_N)
        if self._n_pending >= COUNT_AT_ONCE:
            self._count_pending()

    def table(self) -> NgramTable:
        """The table of all that was added."""
        self._count_pending()
        while len(self._tables) > 1:
            self._merge_last()
        return self._tables[0]

    def _count_pending(self) -> None:
        if not self._pending:
            return
        inputs_N, targets_N = (np.concatenate(p) for p in zip(*self._pending, strict=True))
        self._pending, self._n_pending = [], 0
        like = self._tables[0]
        self._tables.append(
            NgramTable.count(like.order, like.vocab_size, like.boundary_id, inputs_N, targets_N)
        )
        # As in a binary counter: tables of like size merge, so each n-gram moves seldom.
        while len(self._tables) > 1 and self._tables[-2].size <= 2 * self._tables[-1].size:
            self._merge_last()

    def _merge_last(self) -> None:
        last = self._tables.pop()
        self._tables.append(self._tables.pop().merge(last))


def _distinct(sorted_N: Ints) -> Ints:
    return sorted_N[np.diff(sorted_N, prepend=ABSENT) != 0]


def _unique(keys_N: Ints) -> tuple[Ints, Ints]:
    """The different keys, sorted, and where among them each one is."""
    bits = len(keys_N).bit_length()
    if not len(keys_N) or int(keys_N.max()).bit_length() + bits > 63:
        unique, inverse = np.unique(keys_N, return_inverse=True)
        return unique, inverse
    # Key and position in one number: sorting values is several times faster than argsort.
    packed_N = np.sort(keys_N << bits | np.arange(len(keys_N)))
    position_N = packed_N & ((1 << bits) - 1)
    packed_N >>= bits
    new_N = np.diff(packed_N, prepend=ABSENT) != 0
    inverse_N = np.empty_like(packed_N)
    inverse_N[position_N] = np.cumsum(new_N) - 1
    return packed_N[new_N], inverse_N
