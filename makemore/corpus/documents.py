"""Split a text into documents, and documents into train, val and test."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from makemore.corpus.decoding import UnusableTextError
from makemore.corpus.mode import Mode, choose_mode
from makemore.corpus.text import Text
from makemore.runtime.process import require_memory
from makemore.settings.corpus import CorpusConfig, split_fractions

SPLITS = ("train", "val", "test")
SHUFFLE_SEED = 42
MODE_SAMPLE_BYTES = 1 << 23
"""Number of bytes at the start of a text from which its mode is chosen."""
MAX_HELD_OUT = {"lines": 100_000, "text": 2_000_000}
"""Maximum lines or characters in val and in test if ``split`` is ``auto``: more would only slow scoring."""
LINES_PER_BLOCK = 1 << 15
BYTES_PER_LINE = 60
"""Memory that a line takes besides its text, by measurement."""
BYTES_PER_DISTINCT_LINE = 300
"""Memory that ``dedupe`` takes for each distinct line besides its text, by measurement."""


class Spans(NamedTuple):
    """Byte ranges of a text, (D,) uint32 or int64 each; in ``lines`` mode they exclude the newline."""

    begin: np.ndarray
    end: np.ndarray

    def select(self, index: np.ndarray) -> Spans:
        return Spans(self.begin[index], self.end[index])


@dataclass(frozen=True, kw_only=True)
class Documents:
    """The documents of each split, as byte ranges of a text."""

    text: Text
    mode: Mode
    reason: str
    """Reason for the choice of mode, for display."""
    fractions: tuple[float, float, float]
    spans: dict[str, Spans]
    blank_lines: int = 0
    """Blank lines that were left out (``lines`` mode)."""
    capped: bool = False
    """Val and test were limited to ``MAX_HELD_OUT``."""

    def read(self, split: str) -> Iterator[list[str]]:
        """Iterate over a split's documents in blocks; in ``text`` mode, over pieces of its only document."""
        spans = self.spans[split]
        if self.mode == "text":
            for begin, end in zip(*spans, strict=True):
                yield from ([piece] for piece in self.text.pieces(int(begin), int(end)))
            return
        for i in range(0, len(spans.begin), LINES_PER_BLOCK):
            yield _lines(self.text, spans.select(np.arange(i, min(i + LINES_PER_BLOCK, len(spans.begin)))))

    def all(self, split: str) -> list[str]:
        """All documents of a split, in memory."""
        documents = [document for block in self.read(split) for document in block]
        return documents if self.mode == "lines" or not documents else ["".join(documents)]

    def pieces(self, splits: tuple[str, ...], line_end: str) -> Iterator[str]:
        """The text of some splits in pieces, each line followed by ``line_end``."""
        for split in splits:
            for documents in self.read(split):
                yield documents[0] if self.mode == "text" else line_end.join([*documents, ""])

    def head(self, split: str, chars: int) -> str:
        """The first ``chars`` characters of a split's concatenated documents; reads no further."""
        pieces: list[str] = []
        for piece in self.pieces((split,), ""):
            pieces.append(piece[:chars])
            chars -= len(pieces[-1])
            if not chars:
                break
        return "".join(pieces)

    def tail(self, split: str, chars: int) -> str:
        """The last ``chars`` characters of a split's last document."""
        begin, end = (int(part[-1]) for part in self.spans[split])
        return self.text.data[max(begin, end - 4 * chars) : end].decode(errors="ignore")[-chars:]

    def digest(self, split: str) -> str:
        """sha256 of a split's documents, in order."""
        digest = Digest(self.mode)
        for documents in self.read(split):
            digest.add(documents)
        return digest.hex()


class Digest:
    """Incremental sha256 of documents, separated by newlines in ``lines`` mode."""

    def __init__(self, mode: Mode) -> None:
        self._sha256, self._separator = hashlib.sha256(), b"\n" if mode == "lines" else b""
        self._has_documents = False

    def add(self, documents: list[str]) -> None:
        self._sha256.update(self._separator if self._has_documents else b"")
        self._sha256.update("\n".join(documents).encode())
        self._has_documents = True

    def hex(self) -> str:
        return self._sha256.hexdigest()


def _lines(text: Text, spans: Spans) -> list[str]:
    data = text.data
    lines = [data[begin:end] for begin, end in zip(*(part.tolist() for part in spans), strict=True)]
    text.check()
    return b"\n".join(lines).decode().split("\n")


def line_spans(text: Text) -> tuple[Spans, int]:
    """The non-blank lines of a text, and the number of blank ones.

    Raises UserError if there are more lines than fit in memory.
    """
    n_lines = sum(block.count(b"\n") for block in text.blocks()) + 1
    require_memory(n_lines * BYTES_PER_LINE, f"{n_lines:,} lines", "use a part of the text, or --mode text")
    dtype = np.dtype(np.uint32 if text.size < 1 << 32 else np.int64)
    ends, found, offset = np.full(n_lines, text.size, dtype), 0, 0
    for block in text.blocks():
        newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
        ends[found : found + len(newlines)] = newlines + offset
        found, offset = found + len(newlines), offset + len(block)
    if found and ends[found - 1] == text.size - 1:
        ends = ends[:found]  # no line follows the last newline
    begins = np.zeros_like(ends)
    begins[1:] = ends[:-1] + 1
    spans = Spans(begins, ends)
    is_nonblank = _is_nonblank(text, spans)
    if is_nonblank.all():
        return spans, 0
    return spans.select(np.flatnonzero(is_nonblank)), int(np.count_nonzero(~is_nonblank))


def _is_nonblank(text: Text, spans: Spans) -> np.ndarray:
    """(D,) bool: whether a line has a non-space character; the first byte decides most lines."""
    nonblank = np.zeros(len(spans.begin), bool)
    start, offset = 0, 0
    for block in text.blocks():
        data = np.frombuffer(block, np.uint8)
        stop = int(np.searchsorted(spans.begin, spans.begin.dtype.type(offset + len(block))))
        first = data[spans.begin[start:stop] - offset]
        nonblank[start:stop] = (first > 0x20) & (first < 0x7F)
        start, offset = stop, offset + len(block)
    for i in np.flatnonzero(~nonblank & (spans.end > spans.begin)):
        nonblank[i] = bool(text.data[spans.begin[i] : spans.end[i]].decode().strip())
    return nonblank


def _shuffled_order(n: int) -> np.ndarray:
    """(n,) permutation that ``random.shuffle`` makes with SHUFFLE_SEED."""
    order = array("I", range(n))
    random.Random(SHUFFLE_SEED).shuffle(order)
    return np.frombuffer(order, np.uintc)


def _duplicate_groups(text: Text, spans: Spans) -> np.ndarray:
    """(D,) int64: index of each line's group of equal lines, in order of first appearance."""
    needed = len(spans.begin) * BYTES_PER_DISTINCT_LINE + text.size
    require_memory(needed, f"{len(spans.begin):,} lines with --dedupe", "remove repeated lines beforehand")
    groups: dict[bytes, int] = {}
    group_ids = [groups.setdefault(text.data[a:b], len(groups)) for a, b in zip(*spans, strict=True)]
    return np.array(group_ids, np.int64)


def _split_bounds(n: int, shares: tuple[float, float, float], cap: int | None) -> tuple[int, int]:
    """Start indices of val and test among n units, each split limited to ``cap`` units."""
    # Round first: 0.9 + 0.05 is slightly more than 0.95 in floating point.
    val, test = int(round(n * shares[0], 6)), int(round(n * (shares[0] + shares[1]), 6))
    if cap is not None and max(test - val, n - test) > cap:
        return n - 2 * cap, n - cap
    return val, test


def _split_lines(
    text: Text, spans: Spans, shares: tuple[float, float, float], cap: int | None, dedupe: bool
) -> tuple[list[Spans], bool]:
    """Each split's lines, and whether val and test are capped; ``dedupe`` keeps equal lines in one split."""
    group_D = _duplicate_groups(text, spans) if dedupe else np.zeros(0, np.int64)
    units = int(group_D.max()) + 1 if dedupe else len(spans.begin)
    val, test = _split_bounds(units, shares, cap)
    order = _shuffled_order(units)
    if not dedupe:
        parts = [spans.select(order[slice(*edges)]) for edges in ((0, val), (val, test), (test, None))]
    else:
        rank = np.empty(units, np.int64)
        rank[order] = np.arange(units)
        order_D = np.argsort(rank[group_D], kind="stable")
        edges = np.searchsorted(rank[group_D][order_D], [0, val, test, units])
        parts = [spans.select(order_D[i:j]) for i, j in pairwise(edges)]
    return parts, (val, test) != _split_bounds(units, shares, None)


def _split_text(text: Text, shares: tuple[float, float, float], cap: int | None) -> tuple[list[Spans], bool]:
    val, test = _split_bounds(text.chars, shares, cap)
    edges = [0, text.byte_offset(val), text.byte_offset(test), text.size]
    # An empty split has no document.
    parts = [Spans(np.arange(i, i + (j > i)), np.arange(j, j + (j > i))) for i, j in pairwise(edges)]
    return parts, (val, test) != _split_bounds(text.chars, shares, None)


def make_documents(text: Text, config: CorpusConfig) -> Documents:
    """Split a text: lines are shuffled with a fixed seed, running text is cut into contiguous parts.

    Raises UnusableTextError if the text is too short or of one character, or ``dedupe`` needs lines.
    """
    head = text.head(MODE_SAMPLE_BYTES)
    if len(set(head.strip())) < 2 and text.size <= MODE_SAMPLE_BYTES:
        raise UnusableTextError("the text has fewer than two distinct characters; give a more varied text")
    mode, reason = (config.mode, "set explicitly") if config.mode != "auto" else choose_mode(head)
    shares = split_fractions(config.split, mode)
    cap = MAX_HELD_OUT[mode] if config.split == "auto" else None
    n_blank = 0
    if mode == "lines":
        spans, n_blank = line_spans(text)
        if len(spans.begin) < 2:
            raise UnusableTextError("the text has only one line; use --mode text, or give more lines")
        parts, capped = _split_lines(text, spans, shares, cap, config.dedupe)
    elif config.dedupe:
        raise UnusableTextError("--dedupe needs lines, but this text is one document; add --mode lines")
    else:
        parts, capped = _split_text(text, shares, cap)
    for name, share, part in zip(SPLITS, shares, parts, strict=True):
        if share and not len(part.begin):
            unit = "lines" if mode == "lines" else "characters"
            raise UnusableTextError(
                f"the text is too short: the {name} split would be empty; give more {unit}, "
                "or change the split, such as --split 0.5,0.25,0.25"
            )
    return Documents(
        text=text,
        mode=mode,
        reason=reason,
        fractions=shares,
        spans=dict(zip(SPLITS, parts, strict=True)),
        blank_lines=n_blank,
        capped=capped,
    )


def single_split(text: Text, name: str, mode: Mode) -> Documents:
    """A whole text as one split called ``name``."""
    spans = line_spans(text)[0] if mode == "lines" else Spans(np.array([0]), np.array([text.size]))
    return Documents(
        text=text, mode=mode, reason="same as the run", fractions=(1.0, 0.0, 0.0), spans={name: spans}
    )
