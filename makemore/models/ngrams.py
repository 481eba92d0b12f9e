"""Counts of n-grams as a forward trie in flat sorted arrays: exact, without hashing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from makemore.types import IGNORE_INDEX, Ints

Bools = NDArray[np.bool_]

ABSENT = -1
"""Marks a token or context before the start of the row or document."""
UNSEEN = -2
"""Marks a context that isn't in the table."""
ESTIMATE_TOKENS = 1 << 17
"""Number of tokens, from the start of a text, that the estimate of its table's size uses."""
BYTES_PER_NGRAM = 130
"""Memory that an n-gram takes while it is counted, smoothed and saved, by measurement."""
COUNT_CHUNK_SIZE = 1 << 21
"""Tokens buffered before they are counted."""


@dataclass(frozen=True)
class NgramTable:
    """All n-grams up to some order and their counts.

    Level ``m`` (index ``m - 1`` of both lists) holds the m-grams sorted by key, which is
    ``node * vocab_size + token``: ``token`` is the last token, ``node`` the index of the preceding ones in
    the level below (0 at level 1, which has a key for every token of the vocabulary, seen or not).
    So a context's continuations are adjacent, and the levels up to ``m`` are the table of
    order ``m``. A document begins with the boundary token, which no context crosses.
    """

    vocab_size: int
    boundary_id: int
    keys: list[Ints]
    counts: list[Ints]
    """Counts by level; 0 for an n-gram that isn't a target, only (part of) a context."""

    @classmethod
    def empty(cls, order: int, vocab_size: int, boundary_id: int) -> Self:
        """The table of an empty text."""
        keys = [np.arange(size) for size in [vocab_size] + [0] * (order - 1)]
        return cls(vocab_size, boundary_id, keys, [np.zeros_like(k) for k in keys])

    @classmethod
    def uncounted(cls, order: int, vocab_size: int, boundary_id: int) -> Self:
        """Like ``empty``, but with every bigram that begins a document, so that a document's start has a
        distribution of its own."""
        table = cls.empty(order, vocab_size, boundary_id)
        if order > 1:
            table.keys[1] = boundary_id * vocab_size + np.delete(np.arange(vocab_size), boundary_id)
            table.counts[1] = np.zeros_like(table.keys[1])
        return table

    def with_document_starts(self) -> NgramTable:
        """Add the document-start bigrams, as in ``uncounted``; tables of earlier versions lack them."""
        start = self.uncounted(self.order, self.vocab_size, self.boundary_id)
        has_all = self.order == 1 or (self.find(1, *start.split_keys(1)) >= 0).all()
        return self if has_all else self.merge(start)

    @classmethod
    def count(cls, order: int, vocab_size: int, boundary_id: int, inputs_N: Ints, targets_N: Ints) -> Self:
        """Count the n-grams that end in each target, with the context that ends in its input.

        An input of ABSENT separates rows. A target of IGNORE_INDEX isn't counted, but the inputs
        around it still serve as context.
        """
        table = cls.empty(order, vocab_size, boundary_id)
        next_N = np.append(inputs_N[1:], ABSENT)
        next_N[next_N == boundary_id] = ABSENT
        counted_N = targets_N != IGNORE_INDEX
        last_N = np.where(counted_N, targets_N, next_N)
        table.counts[0][:] = np.bincount(targets_N[counted_N], minlength=vocab_size)
        continues_N = (next_N != ABSENT) & (next_N == last_N)
        # Sorting n-grams packed into integers is several times faster than working level by level.
        fill = _fill_packed if (vocab_size + 1) ** order < 2**62 else _fill_by_level
        fill(table, inputs_N, last_N, continues_N, counted_N)
        return table

    @property
    def order(self) -> int:
        return len(self.keys)

    @property
    def size(self) -> int:
        """Number of n-grams of all lengths."""
        return sum(map(len, self.keys))

    def cut(self, order: int) -> NgramTable:
        """The table of a lower order, sharing this one's arrays."""
        return NgramTable(self.vocab_size, self.boundary_id, self.keys[:order], self.counts[:order])

    def merge(self, other: NgramTable) -> NgramTable:
        """The sum of two tables of the same order, vocabulary and boundary token."""
        merged = NgramTable.empty(self.order, self.vocab_size, self.boundary_id)
        tables = (self, other)
        index_maps = [np.zeros(1, np.int64)] * 2
        for level in range(self.order):
            # Remapping preserves the order of contexts, so each table's keys stay sorted.
            remapped = []
            for table, index_map in zip(tables, index_maps, strict=True):
                nodes, tokens = table.split_keys(level)
                remapped.append(index_map[nodes] * self.vocab_size + tokens)
            keys = _distinct(np.sort(np.concatenate(remapped), kind="stable"))
            index_maps = [np.searchsorted(keys, m) for m in remapped]
            counts = np.zeros(len(keys), np.int64)
            for table, index_map in zip(tables, index_maps, strict=True):
                counts[index_map] += table.counts[level]
            merged.keys[level], merged.counts[level] = keys, counts
        return merged

    def split_keys(self, level: int) -> tuple[Ints, Ints]:
        """Context node and last token of each n-gram of ``level`` (from 0)."""
        nodes = self.keys[level] // self.vocab_size
        return nodes, self.keys[level] - nodes * self.vocab_size

    def find(self, level: int, contexts_N: Ints, tokens_N: Ints) -> Ints:
        """Nodes in ``level`` (from 0) of contexts of the level below, each extended by one token.

        ABSENT where the context is ABSENT, UNSEEN where the table lacks the n-gram.
        """
        if level == 0:
            return tokens_N
        missing_N = np.where(contexts_N == ABSENT, ABSENT, UNSEEN)
        keys = self.keys[level]
        if not len(keys):
            return missing_N
        key_N = contexts_N * self.vocab_size + tokens_N
        index_N = np.minimum(np.searchsorted(keys, key_N), len(keys) - 1)
        return np.where((contexts_N >= 0) & (keys[index_N] == key_N), index_N, missing_N)

    def contexts(self, tokens_N: Ints) -> list[Ints]:
        """Nodes (N,) of contexts of 0 … order - 1 tokens ending at each position; ABSENT separates rows."""
        starts_N = (tokens_N == self.boundary_id) | (tokens_N == ABSENT)
        contexts = [np.zeros_like(tokens_N), tokens_N]
        for level in range(1, self.order - 1):
            previous_N = np.append(ABSENT, contexts[-1][:-1])
            previous_N[starts_N] = ABSENT
            contexts.append(self.find(level, previous_N, tokens_N))
        return contexts[: self.order]

    @cached_property
    def suffixes(self) -> list[Ints]:
        """Node, one level below, of each n-gram without its first token; by level, from 2-grams up.

        Raises ValueError if a suffix is missing from the table, which counting a text never causes.
        """
        result = []
        suffixes = np.zeros(self.vocab_size, np.int64)
        for level in range(1, self.order):
            nodes, tokens = self.split_keys(level)
            suffixes = self.find(level - 1, suffixes[nodes], tokens)
            if suffixes.size and suffixes.min() < 0:
                raise ValueError(f"{level + 1}-grams whose {level}-gram suffixes are missing")
            result.append(suffixes)
        return result

    @cached_property
    def continuations(self) -> list[Ints]:
        """For each n-gram below the highest order, the number of distinct tokens seen before it.

        N-grams that begin a document have no preceding token and use their plain counts. Raises
        ValueError like ``suffixes``.
        """
        result = []
        is_start = np.zeros(self.vocab_size, bool)
        for level, suffixes in enumerate(self.suffixes, start=1):
            seen = suffixes[self.counts[level] > 0]
            n_preceding = np.bincount(seen, minlength=len(self.keys[level - 1]))
            result.append(np.where(is_start, self.counts[level - 1], n_preceding))
            nodes = self.split_keys(level)[0]
            is_start = is_start[nodes] if level > 1 else nodes == self.boundary_id
        return result

    def validate(self) -> None:
        """Raise ValueError with the reason if the arrays aren't a valid table."""
        n_contexts = 1
        for n, (keys, counts) in enumerate(zip(self.keys, self.counts, strict=True), start=1):
            if keys.shape != counts.shape or keys.ndim != 1:
                raise ValueError(f"{n}-grams: keys have shape {keys.shape}, counts {counts.shape}")
            if counts.size and counts.min() < 0:
                raise ValueError(f"{n}-grams: negative counts")
            if (np.diff(keys) <= 0).any():
                raise ValueError(f"{n}-grams: keys aren't strictly increasing")
            if keys.size and not 0 <= keys[0] <= keys[-1] < n_contexts * self.vocab_size:
                raise ValueError(f"{n}-grams: keys refer to missing contexts")
            n_contexts = len(keys)
        if len(self.keys[0]) != self.vocab_size:
            raise ValueError(f"table has {len(self.keys[0])} tokens, expected {self.vocab_size}")
        _ = self.continuations


def _fill_by_level(
    table: NgramTable, inputs_N: Ints, last_N: Ints, continues_N: Bools, counted_N: Bools
) -> None:
    """Fill levels 2 and up, each from the level below; works for n-grams of any size."""
    contexts_N = inputs_N
    index = np.flatnonzero(last_N != ABSENT)
    for level in range(1, table.order):
        index = index[contexts_N[index] != ABSENT]
        table.keys[level], nodes = _unique(contexts_N[index] * table.vocab_size + last_N[index])
        counted = nodes[counted_N[index]]
        table.counts[level] = np.bincount(counted, minlength=len(table.keys[level]))
        # The n-gram ending in this target is a context of the next target.
        continues = continues_N[index]
        contexts_N = np.full(len(inputs_N), ABSENT)
        contexts_N[index[continues] + 1] = nodes[continues]


def _fill_packed(
    table: NgramTable, inputs_N: Ints, last_N: Ints, continues_N: Bools, counted_N: Bools
) -> None:
    """Like ``_fill_by_level``, if n-grams fit in 62 bits: pack the longest n-gram from each position into an
    integer with tokens as digits (0: end) and sort these once. Shorter n-grams are leading digits."""
    digits, ignored = _sequences(inputs_N, last_N, continues_N, counted_N)
    base, order = table.vocab_size + 1, table.order
    grams = _pack_grams(digits, base, order)
    sorted_N = np.sort(grams)
    sorted_N = sorted_N[np.searchsorted(sorted_N, base ** (order - 1)) :]
    first = np.flatnonzero(np.diff(sorted_N, prepend=ABSENT))
    unique_U, counts_U = sorted_N[first], np.diff(np.append(first, len(sorted_N)))
    nodes_U = unique_U // base ** (order - 1) - 1
    for level in range(1, order):
        prefixes_U = unique_U // base ** (order - 1 - level)
        token_U = prefixes_U % base - 1
        exists_U = token_U >= 0
        new = np.flatnonzero(exists_U & (np.diff(prefixes_U, prepend=ABSENT) != 0))
        if not len(new):
            return
        table.keys[level] = nodes_U[new] * table.vocab_size + token_U[new]
        counts = np.add.reduceat(counts_U * exists_U, new)
        # N-grams that end in an ignored target were seen as context only.
        starts = ignored[ignored >= level] - level
        context = grams[starts] // base ** (order - 1 - level)
        context = context[context % base > 0]
        counts -= np.bincount(np.searchsorted(prefixes_U[new], context), minlength=len(new))
        table.counts[level] = counts
        is_new = np.zeros(len(unique_U), np.int64)
        is_new[new] = 1
        nodes_U = np.cumsum(is_new) - 1


def _sequences(inputs_N: Ints, last_N: Ints, continues_N: Bools, counted_N: Bools) -> tuple[Ints, Ints]:
    """Tokens plus one, with a zero after each contiguous sequence; and positions of ignored targets."""
    ends_N = ~continues_N & (inputs_N != ABSENT)
    appends_last_N = ends_N & (last_N != ABSENT)
    n_digits_N = 1 + ends_N + appends_last_N
    position_N = np.cumsum(n_digits_N) - n_digits_N
    digits = np.zeros(int(n_digits_N.sum()), np.int64)
    digits[position_N] = inputs_N + 1
    digits[position_N[appends_last_N] + 1] = last_N[appends_last_N] + 1
    ignored_N = continues_N & (inputs_N != ABSENT) & ~counted_N
    return digits, position_N[ignored_N] + 1


def _pack_grams(digits: Ints, base: int, order: int) -> Ints:
    """Pack the ``order`` digits starting at each position into one integer, zeros after the first zero."""
    grams, alive = digits.copy(), digits > 0
    for offset in range(1, order):
        following = np.append(digits[offset:], np.zeros(min(offset, len(digits)), np.int64))
        alive &= following > 0
        grams *= base
        grams += following * alive
    return grams


def estimate_sizes(tokens_N: Ints, order: int, vocab_size: int, boundary_id: int) -> list[float]:
    """Estimate the number of different n-grams of a text at each level, from its first tokens.

    They grow as a power of the text's length (Heaps' law), whose exponent is measured between half of the
    sample and all of it.
    """
    sample_N = tokens_N[:ESTIMATE_TOKENS].astype(np.int64)
    half, full = (
        [len(keys) for keys in NgramTable.count(order, vocab_size, boundary_id, part[:-1], part[1:]).keys]
        for part in (sample_N[: len(sample_N) // 2], sample_N)
    )
    scale = len(tokens_N) / max(1, len(sample_N))
    return [
        min(n * scale ** np.log2(n / max(1, n_half)), float(vocab_size) ** level)
        for level, (n_half, n) in enumerate(zip(half, full, strict=True), start=1)
    ]


class NgramCounter:
    """Counts the n-grams of a text that arrives in pieces, in memory proportional to the table."""

    def __init__(self, start: NgramTable) -> None:
        self._tables = [start]
        self._pending: list[tuple[Ints, Ints]] = []
        self._n_pending = 0

    def add(self, inputs_N: Ints, targets_N: Ints) -> None:
        """Add rows of text in the format of ``NgramTable.count``; the last row ends here."""
        self._pending.append((inputs_N, targets_N))
        self._n_pending += len(inputs_N)
        if self._n_pending >= COUNT_CHUNK_SIZE:
            self._count_pending()

    def table(self) -> NgramTable:
        """The table of everything added so far."""
        self._count_pending()
        while len(self._tables) > 1:
            self._merge_last()
        return self._tables[0]

    def _count_pending(self) -> None:
        if not self._pending:
            return
        inputs_N, targets_N = (np.concatenate(p) for p in zip(*self._pending, strict=True))
        self._pending, self._n_pending = [], 0
        first = self._tables[0]
        self._tables.append(
            NgramTable.count(first.order, first.vocab_size, first.boundary_id, inputs_N, targets_N)
        )
        # Merge tables of similar size, as in a binary counter, so each n-gram is rarely copied.
        while len(self._tables) > 1 and self._tables[-2].size <= 2 * self._tables[-1].size:
            self._merge_last()

    def _merge_last(self) -> None:
        last = self._tables.pop()
        self._tables.append(self._tables.pop().merge(last))


def _distinct(sorted_N: Ints) -> Ints:
    return sorted_N[np.diff(sorted_N, prepend=ABSENT) != 0]


def _unique(keys_N: Ints) -> tuple[Ints, Ints]:
    """Sorted unique keys and the inverse indices, like ``np.unique(keys_N, return_inverse=True)``."""
    bits = len(keys_N).bit_length()
    if not len(keys_N) or int(keys_N.max()).bit_length() + bits > 63:
        unique, inverse = np.unique(keys_N, return_inverse=True)
        return unique, inverse
    # Pack key and position into one integer: sorting is several times faster than argsort.
    packed_N = np.sort(keys_N << bits | np.arange(len(keys_N)))
    position_N = packed_N & ((1 << bits) - 1)
    packed_N >>= bits
    new_N = np.diff(packed_N, prepend=ABSENT) != 0
    inverse_N = np.empty_like(packed_N)
    inverse_N[position_N] = np.cumsum(new_N) - 1
    return packed_N[new_N], inverse_N
