"""A bounded, even excerpt of a text of any size: what tokenizers learn from."""

from __future__ import annotations

from collections.abc import Iterable

CHUNK_CHARS = 1 << 16
EXCERPT_CHARS = 1 << 26


def chunks(pieces: Iterable[str], size: int = CHUNK_CHARS) -> Iterable[str]:
    """The same text in parts of at most ``size`` characters."""
    for piece in pieces:
        for at in range(0, len(piece), size):
            yield piece[at : at + size]


def excerpt(pieces: Iterable[str], limit: int = EXCERPT_CHARS) -> tuple[list[str], str]:
    """At most ``limit`` characters, every n-th chunk of the text; and a note where that isn't all."""
    kept: list[str] = []
    size, every = 0, 1
    for nth, chunk in enumerate(chunks(pieces)):
        if nth % every:
            continue
        kept.append(chunk)
        size += len(chunk)
        if size > limit and len(kept) > 1:
            # Half of what is kept goes, and half of what comes: the rest stays evenly spread.
            kept, every = kept[::2], every * 2
            size = sum(map(len, kept))
    return kept, "" if every == 1 else f"learned from {size:,} characters, every {every}th part of the text"
