"""Evenly spaced excerpts of large texts, to fit tokenizers on."""

from __future__ import annotations

from collections.abc import Iterable

CHUNK_CHARS = 1 << 16
EXCERPT_CHARS = 1 << 26


def chunks(pieces: Iterable[str], size: int = CHUNK_CHARS) -> Iterable[str]:
    """Cut a text into parts of at most ``size`` characters."""
    for piece in pieces:
        for at in range(0, len(piece), size):
            yield piece[at : at + size]


def excerpt(pieces: Iterable[str], limit: int = EXCERPT_CHARS) -> tuple[list[str], str]:
    """Sample up to ``limit`` characters, every n-th chunk; also return a note if chunks were skipped."""
    sample: list[str] = []
    size, stride = 0, 1
    for i, chunk in enumerate(chunks(pieces)):
        if i % stride:
            continue
        sample.append(chunk)
        size += len(chunk)
        if size > limit and len(sample) > 1:
            # Drop every other chunk and double the stride, which keeps the sample evenly spaced.
            sample, stride = sample[::2], stride * 2
            size = sum(map(len, sample))
    return sample, "" if stride == 1 else f"fitted to {size:,} characters, every {stride}th chunk of the text"
