"""Share of a held-out running text that occurs verbatim in the training text."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from makemore.corpus.splits import Corpus
from makemore.types import Score, Split

MIN_PASSAGE_CHARS = 100
"""Minimum length of a copied passage; ordinary phrases are shorter."""
MAX_SEARCHED_TOKENS = 1 << 22
"""Tokens at the beginning of train that are searched, at 60 ms per million."""
CHUNK = 1 << 18
FILTER_SIZE = np.uint64(1 << 22)

Hashes = NDArray[np.uint64]


def with_copies(score: Score, corpus: Corpus, split: Split) -> Score:
    """A score with its ``copied``; unchanged for lists of lines and for train."""
    if corpus.mode != "text" or split.name == "train":
        return score
    return dataclasses.replace(score, copied=copied_share(corpus.splits["train"], split))


def copied_share(train: Split, held_out: Split) -> float:
    """Share of the held-out tokens in passages that occur verbatim in train.

    Passages are compared by hashes, about 64 bits each; only those of MIN_PASSAGE_CHARS characters (by the
    mean length of a token) or more count.

    Returns:
        A fraction in [0, 1].
    """
    length = max(2, round(MIN_PASSAGE_CHARS * len(held_out.tokens_N) / max(held_out.chars, 1)))
    hashes = _hashes(held_out.tokens_N, length)
    if not len(hashes):
        return 0.0
    wanted, position_N = np.unique(hashes, return_inverse=True)
    position_N = position_N.astype(np.int32)
    found = np.zeros(len(wanted), bool)
    may_be_wanted = np.zeros(FILTER_SIZE, bool)
    may_be_wanted[wanted % FILTER_SIZE] = True
    tokens_N = train.tokens_N[:MAX_SEARCHED_TOKENS]
    for begin in range(0, len(tokens_N) - length + 1, CHUNK):
        hashes = _hashes(tokens_N[begin : begin + CHUNK + length - 1], length)
        hashes = hashes[may_be_wanted[hashes % FILTER_SIZE]]
        index = np.minimum(wanted.searchsorted(hashes), len(wanted) - 1)
        found[index[wanted[index] == hashes]] = True
    is_copied = np.zeros(len(held_out.tokens_N) + 1, np.int64)
    starts = np.flatnonzero(found[position_N])
    np.add.at(is_copied, starts, 1)
    np.add.at(is_copied, starts + length, -1)
    return float(np.mean(np.cumsum(is_copied)[:-1] > 0))


def _hashes(tokens_N: np.ndarray, length: int) -> Hashes:
    """Polynomial hashes (N - length + 1,) of all windows of ``length`` tokens, by doubling; or empty."""
    count = len(tokens_N) - length + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    # Hash single tokens first: a polynomial of small numbers modulo 2^64 collides.
    power = (tokens_N.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    power ^= power >> np.uint64(29)
    power *= np.uint64(0xBF58476D1CE4E5B9)
    factor = np.uint64(0xD6E8FEB86659FD93)
    result, done = np.zeros(count, np.uint64), 0
    size, scale = 1, factor
    with np.errstate(over="ignore"):
        while size <= length:
            if length & size:
                result = result * scale + power[done : done + count]
                done += size
            power = power[:-size] * scale + power[size:] if len(power) > size else power[:0]
            size, scale = 2 * size, scale * scale
    return result
