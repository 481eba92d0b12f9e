"""The beginning of a split, for scores that must not take long."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from makemore.tokenizers.base import Tokenizer
from makemore.types import Split

ALWAYS_SCORED = 1 << 16
"""Tokens that are always scored; gates are fitted on no more than these."""
WARM_UP, MEASURED = 1 << 9, 1 << 13
"""Tokens that are scored before, and while, scoring is timed."""


def affordable_part(
    split: Split, tokenizer: Tokenizer, seconds: float, score: Callable[[Split], object]
) -> Split:
    """As much of a split, from its beginning, as ``score`` reads in about this time; all of it if it is
    short."""
    if len(split.tokens_N) <= ALWAYS_SCORED:
        return split
    measured = beginning(split, MEASURED, tokenizer)
    score(beginning(split, WARM_UP, tokenizer))  # compiles, and fills caches
    started = time.perf_counter()
    score(measured)
    tokens_per_second = len(measured.tokens_N) / (time.perf_counter() - started)
    return beginning(split, max(ALWAYS_SCORED, int(seconds * tokens_per_second)), tokenizer)


def beginning(split: Split, n: int, tokenizer: Tokenizer) -> Split:
    """The first documents of a split, with at most ``n`` tokens; a longer first document is cut."""
    if len(split.tokens_N) <= n:
        return split
    n_documents = int((split.ends_D <= n).sum())
    if n_documents == 0:
        return _cut(split, n, tokenizer)
    return dataclasses.replace(
        split,
        tokens_N=split.tokens_N[: split.ends_D[n_documents - 1]],
        starts_D=split.starts_D[:n_documents],
        chars_D=split.chars_D[:n_documents],
        bytes_D=split.bytes_D[:n_documents],
        in_train_D=None if split.in_train_D is None else split.in_train_D[:n_documents],
        unknown_chars_D=None if split.unknown_chars_D is None else split.unknown_chars_D[:n_documents],
    )


def _cut(split: Split, n: int, tokenizer: Tokenizer) -> Split:
    """The first ``n`` tokens of the first document, with a proportional share of its characters that have no
    token."""
    end = int(split.ends_D[0])
    spelled = tokenizer.decode_bytes(split.tokens_N[:n])
    chars = int(np.count_nonzero(np.frombuffer(spelled, np.uint8) & 0xC0 != 0x80))
    lost = 0 if split.unknown_chars_D is None else int(split.unknown_chars_D[0])
    part = int(lost * n / end)
    # A character has one to four bytes.
    part_bytes = np.clip(int(split.bytes_D[0] * n / end) - len(spelled), part, 4 * part)
    return dataclasses.replace(
        split,
        tokens_N=split.tokens_N[:n],
        starts_D=split.starts_D[:1],
        chars_D=np.array([chars + part]),
        bytes_D=np.array([len(spelled) + part_bytes]),
        in_train_D=None if split.in_train_D is None else split.in_train_D[:1],
        unknown_chars_D=None if split.unknown_chars_D is None else np.array([part]),
    )
