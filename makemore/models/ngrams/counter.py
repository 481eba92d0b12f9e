"""Count the n-grams of a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from makemore.models.ngrams.builder import TableBuilder, merge_tables
from makemore.models.ngrams.table import ABSENT, NgramTable
from makemore.runtime.process import release_memory
from makemore.types import IGNORE_INDEX, Ints

Bools = NDArray[np.bool_]
Level = tuple[Ints, Ints]
"""Keys and counts of the n-grams of one length, as in ``NgramTable``."""

ESTIMATE_TOKENS = 1 << 17
"""Number of tokens, from the start of a text, that the estimate of its table's size uses."""
COUNT_CHUNK_SIZE = 1 << 19
"""Tokens buffered before they are counted."""


def count_ngrams(
    order: int, vocab_size: int, boundary_id: int, inputs_N: Ints, targets_N: Ints
) -> NgramTable:
    """Count the n-grams that end in each target, with the context that ends in its input.

    An input of ABSENT separates rows. A target of IGNORE_INDEX isn't counted, but the inputs around it still
    serve as context.
    """
    next_N = np.append(inputs_N[1:], ABSENT)
    next_N[next_N == boundary_id] = ABSENT
    counted_N = targets_N != IGNORE_INDEX
    last_N = np.where(counted_N, targets_N, next_N)
    continues_N = (next_N != ABSENT) & (next_N == last_N)
    builder = TableBuilder(vocab_size, boundary_id, vocab_size + order * len(inputs_N))
    builder.add_level(np.arange(vocab_size), np.bincount(targets_N[counted_N], minlength=vocab_size))
    # Sorting n-grams packed into integers is several times faster than working level by level.
    levels = _packed_levels if (vocab_size + 1) ** order < 2**62 else _levels
    for keys, counts in levels(order, vocab_size, inputs_N, last_N, continues_N, counted_N):
        builder.add_level(keys, counts)
    return builder.build()


def _levels(
    order: int, vocab_size: int, inputs_N: Ints, last_N: Ints, continues_N: Bools, counted_N: Bools
) -> Iterator[Level]:
    """Levels 2 and up, each from the level below; works for n-grams of any size."""
    contexts_N = inputs_N
    index = np.flatnonzero(last_N != ABSENT)
    for _ in range(1, order):
        index = index[contexts_N[index] != ABSENT]
        keys, nodes = _unique(contexts_N[index] * vocab_size + last_N[index])
        yield keys, np.bincount(nodes[counted_N[index]], minlength=len(keys))
        # The n-gram ending in this target is a context of the next target.
        continues = continues_N[index]
        contexts_N = np.full(len(inputs_N), ABSENT)
        contexts_N[index[continues] + 1] = nodes[continues]


def _packed_levels(
    order: int, vocab_size: int, inputs_N: Ints, last_N: Ints, continues_N: Bools, counted_N: Bools
) -> Iterator[Level]:
    """Like ``_levels``, if n-grams fit in 62 bits: pack the longest n-gram from each position into an
    integer with tokens as digits (0: end) and sort these once. Shorter n-grams are leading digits."""
    digits, ignored = _sequences(inputs_N, last_N, continues_N, counted_N)
    base = vocab_size + 1
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
        counts = np.add.reduceat(counts_U * exists_U, new) if len(new) else new
        # N-grams that end in an ignored target were seen as context only.
        starts = ignored[ignored >= level] - level
        context = grams[starts] // base ** (order - 1 - level)
        context = context[context % base > 0]
        counts -= np.bincount(np.searchsorted(prefixes_U[new], context), minlength=len(new))
        yield nodes_U[new] * vocab_size + token_U[new], counts
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
        count_ngrams(order, vocab_size, boundary_id, part[:-1], part[1:]).sizes
        for part in (sample_N[: len(sample_N) // 2], sample_N)
    )
    scale = len(tokens_N) / max(1, len(sample_N))
    return [
        min(n * scale ** np.log2(n / max(1, n_half)), float(vocab_size) ** level)
        for level, (n_half, n) in enumerate(zip(half, full, strict=True), start=1)
    ]


class NgramCounter:
    """Counts the n-grams of a text that arrives in pieces, in memory proportional to the table.

    If more than ``max_size`` n-grams are different, the order is lowered until they aren't.
    """

    def __init__(self, start: NgramTable, max_size: int | None) -> None:
        self._tables, self._max_size = [start], max_size
        self._pending: list[tuple[Ints, Ints]] = []
        self._n_pending = 0

    def add(self, inputs_N: Ints, targets_N: Ints) -> None:
        """Add rows of text in the format of ``count_ngrams``; the last row ends here."""
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
        order = min(table.order for table in self._tables)
        table = count_ngrams(order, first.vocab_size, first.boundary_id, inputs_N, targets_N)
        self._tables.append(table)
        # Merge tables of similar size, as in a binary counter, so each n-gram is rarely copied.
        while len(self._tables) > 1 and (self._is_full() or self._tables[-2].size <= 2 * table.size):
            self._merge_last()
            table = self._tables[-1]

    def _is_full(self) -> bool:
        return self._max_size is not None and sum(table.size for table in self._tables) > self._max_size

    def _merge_last(self) -> None:
        last = self._tables.pop()
        self._tables.append(merge_tables(self._tables.pop(), last, self._max_size))
        release_memory()


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
