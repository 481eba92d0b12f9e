"""Decide whether a text is a list of lines or running text."""

from __future__ import annotations

import bz2
import random
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

Mode = Literal["lines", "text"]
MAX_LINES = 10_000
"""Number of lines at the start of a text whose order is examined."""
SHUFFLED_LINES = 100
"""Lines are shuffled within blocks of this size, so that the difference isn't due to a slow drift."""
MIN_SAVING = 0.06
"""Minimum share of bytes that a sequence saves by its order; lists save less than 0.06, sorted or not."""
MIN_SHARED_RATIO = 1.5
"""Minimum ratio of words shared by neighbouring lines, in order and shuffled."""
MIN_SIGMAS = 4.0
"""Minimum number of standard deviations between these two numbers of words."""
MAX_SORTED = 0.75
"""Maximum share of neighbouring lines in the same alphabetical order; above, the text is sorted."""


def choose_mode(text: str) -> tuple[Mode, str]:
    """Choose ``lines`` for a list of short lines or ``text`` for prose; also return the reason."""
    lines = text.rstrip("\n").split("\n")
    blank = sum(not line.strip() for line in lines) / len(lines)
    indented = sum(line[:1] in (" ", "\t") for line in lines) / len(lines)
    lengths = sorted(len(line) for line in lines)
    median, long = lengths[len(lines) // 2], lengths[int(len(lines) * 0.95)]
    if len(lines) < 10:
        return "text", f"it has {len(lines)} line{'s' * (len(lines) != 1)}"
    if blank > 0.01:
        return "text", f"{blank:.0%} of its lines are blank"
    if indented > 0.1:
        return "text", f"{indented:.0%} of its lines are indented"
    if median > 40 or long > 200:
        return "text", f"its lines are long (median {median} characters)"
    if reason := order_reason(lines[:MAX_LINES]):
        return "text", f"{reason}; for a list, pass --mode lines"
    kind = f"it is a list of {len(lines):,} short lines (median {median} characters)"
    return "lines", f"{kind}; if their order matters, pass --mode text"


def order_reason(lines: Sequence[str]) -> str:
    """Why the order of the lines matters; empty if it doesn't.

    Two signs: in their order the lines compress better, as events and measurements do, or they share more
    words with their neighbours, as verses do. In a sorted text neighbours are alike in any case: only the
    first sign counts there, without repeated lines and without the digits that it may be sorted by.
    """
    is_sorted = max(share := _share_ascending(lines), 1 - share) > MAX_SORTED
    lines = list(dict.fromkeys(lines)) if is_sorted else lines
    shuffled = _shuffle(lines)
    if (saving := _saving(lines, shuffled, ignore_digits=is_sorted)) >= MIN_SAVING:
        return f"its lines depend on their order (they compress {saving:.0%} better than shuffled)"
    if is_sorted:
        return ""
    shared, expected = _shared_words(lines), max(_shared_words(shuffled), 1)
    if shared >= MIN_SHARED_RATIO * expected and shared - expected >= MIN_SIGMAS * expected**0.5:
        return f"neighbouring lines share {shared / expected:.1f} times as many words as shuffled lines"
    return ""


def _shuffle(lines: Sequence[str]) -> list[str]:
    rng = random.Random(0)
    blocks = (list(lines[i : i + SHUFFLED_LINES]) for i in range(0, len(lines), SHUFFLED_LINES))
    return [line for block in blocks for line in rng.sample(block, len(block))]


def _saving(lines: Sequence[str], shuffled: Sequence[str], ignore_digits: bool) -> float:
    """Share of the compressed size that the order of the lines saves."""
    in_order, out_of_order = "\n".join(lines), "\n".join(shuffled)
    total = _compressed_size(out_of_order)
    if ignore_digits:
        in_order, out_of_order = (re.sub(r"\d", "0", text) for text in (in_order, out_of_order))
    return (_compressed_size(out_of_order) - _compressed_size(in_order)) / total


def _compressed_size(text: str) -> int:
    return len(bz2.compress(text.encode()))


def _share_ascending(lines: Sequence[str]) -> float:
    pairs = [(a, b) for a, b in pairwise(lines) if a != b]
    return sum(a < b for a, b in pairs) / max(len(pairs), 1)


def _shared_words(lines: Sequence[str]) -> int:
    """Number of words of at least four letters that lines share with the next line."""
    words = [set(re.findall(r"\w{4,}", line.lower())) for line in lines]
    return sum(len(a & b) for a, b in pairwise(words))
