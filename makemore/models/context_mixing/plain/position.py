"""Positions and hashes of contexts, as in ``position.h``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from makemore.models.context_mixing import memory
from makemore.models.context_mixing.memory import ORDERS, POSITION
from makemore.types import TokenKind

Words = NDArray[np.uint64]
MASK = (1 << 64) - 1


def combine(hash_: int, x: int) -> int:
    """A 64-bit hash of a hash and a number."""
    hash_ = (hash_ + x + 1) * 0x9E3779B97F4A7C15 & MASK
    return hash_ ^ hash_ >> 32


def is_word(kind: int) -> bool:
    """Whether tokens of this kind are parts of words."""
    return TokenKind.LETTER <= kind <= TokenKind.DIGIT


def push(p: Words, token: int, boundary: int, kinds: NDArray[np.uint8], folded: NDArray[np.int32]) -> None:
    """Append a token to a position; the boundary begins a document."""
    if token == boundary:
        p[:] = 0
        p[POSITION.recent : POSITION.line] = boundary
        p[POSITION.is_heading] = 1
        return
    kind = int(kinds[token])
    p[POSITION.recent + 1 : POSITION.folded] = p[POSITION.recent : POSITION.folded - 1].copy()
    p[POSITION.recent] = token
    if kind > TokenKind.SPACE or kinds[int(p[POSITION.folded])] > TokenKind.SPACE:
        p[POSITION.folded + 1 : POSITION.line] = p[POSITION.folded : POSITION.line - 1].copy()
        p[POSITION.folded] = folded[token]
    if is_word(kind):
        if not p[POSITION.word_length]:
            p[POSITION.is_capital] = kind == TokenKind.UPPER
        p[POSITION.word_length] += 1
        p[POSITION.word] = combine(int(p[POSITION.word]), int(folded[token]))
    elif p[POSITION.word_length]:
        _end_word(p, kinds)
    if not is_word(kind):
        p[POSITION.gap] = combine(int(p[POSITION.gap]), token)
    p[POSITION.kinds] = int(p[POSITION.kinds]) << 3 & MASK | kind
    column = int(p[POSITION.column])
    if column < memory.COLUMNS:
        p[POSITION.line + column] = token
    if kind == TokenKind.SPACE and p[POSITION.indent] == column:
        p[POSITION.indent] += 1
    p[POSITION.column] += 1
    p[POSITION.opening] = combine(int(p[POSITION.opening]), token)
    if not p[POSITION.n_words]:
        p[POSITION.first] = combine(int(p[POSITION.word]), int(p[POSITION.indent]))
    if kind == TokenKind.NEWLINE:
        _end_line(p)


def _end_word(p: Words, kinds: NDArray[np.uint8]) -> None:
    p[POSITION.words + 1 : POSITION.words + 3] = p[POSITION.words : POSITION.words + 2].copy()
    p[POSITION.words] = p[POSITION.word]
    suffix = 0
    for token in p[POSITION.recent + 1 : POSITION.recent + 4].tolist():
        if not is_word(int(kinds[token])):
            break
        suffix = combine(suffix, token)
    p[POSITION.suffix] = suffix
    p[[POSITION.word, POSITION.word_length, POSITION.gap]] = 0
    p[POSITION.n_words] += 1


def _end_line(p: Words) -> None:
    if p[POSITION.is_heading]:
        p[POSITION.heading] = p[POSITION.opening]
    p[POSITION.is_heading] = p[POSITION.column] == 1
    p[POSITION.above : POSITION.word] = p[POSITION.line : POSITION.above]
    p[POSITION.line : POSITION.above] = 0
    p[POSITION.firsts + 1], p[POSITION.firsts] = p[POSITION.firsts], p[POSITION.first]
    p[[POSITION.first, POSITION.opening, POSITION.column, POSITION.indent, POSITION.n_words]] = 0


def context_hashes(p: Words) -> list[int]:
    """The hash of each context at a position."""
    f = {name: int(p[i]) for name, i in vars(POSITION).items()}
    t, folded = p[: memory.RECENT].tolist(), p[POSITION.folded : POSITION.line].tolist()
    words, line, above_C = p[POSITION.words :].tolist(), p[POSITION.line :], p[POSITION.above :]
    hashes, hash_ = [], 0
    for order in range(ORDERS[-1] + 1):
        if order in ORDERS:
            hashes.append(hash_)
        hash_ = combine(hash_, t[order])
    word = combine(f["word"], 0 if f["word_length"] else t[0])
    two_words = combine(combine(f["word"], 0 if f["word_length"] else f["gap"]), words[0])
    hashes += [
        word,
        two_words,
        combine(two_words, words[1]),
        combine(word, words[1]),
        combine(word, f["suffix"]),
    ]
    hash_ = 0
    for i in range(7):
        hash_ = combine(hash_, folded[i])
        if i in (2, 4, 6):
            hashes.append(hash_)
    column, inside = f["column"], f["column"] < memory.COLUMNS
    above = int(above_C[column]) if inside else 0
    next_above = int(above_C[(column + 1) % memory.COLUMNS]) if inside else 0
    place = column if column < 3 else 3 + f["n_words"]
    begin = int(line[0]) * 256 + f["first"] if column > 2 else f["first"]
    skipping = combine(combine(0, t[1]), t[2])
    opening = combine(f["opening"], f["heading"]) if f["is_heading"] else combine(word, f["heading"])
    return [
        *hashes,
        combine(skipping, t[3]),
        combine(combine(combine(f["kinds"] & 7, t[2]), t[3]), t[4]),
        combine(combine(0, t[1]), t[2] * 64 + min(f["word_length"], 7)),
        combine(word, place * 2 + f["is_heading"]),
        opening,
        combine(combine(above, t[0]), next_above),
        combine(combine(column, above), t[0]),
        combine(combine(word, f["firsts"]), begin & MASK),
        combine(combine(min(f["word_length"], 7), t[0]), combine(t[1], min(f["n_words"], 7))),
    ]
