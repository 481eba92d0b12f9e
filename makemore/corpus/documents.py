"""A text as documents, and documents as train, val and test."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from makemore.corpus.text import Text
from makemore.errors import UserError
from makemore.settings import CorpusConfig, split_shares

Mode = Literal["lines", "text"]
SPLITS = ("train", "val", "test")
SHUFFLE_SEED = 42
LOOKED_AT = 1 << 23
"""Bytes at a text's beginning that its mode is chosen by."""
MOST_HELD_OUT = {"lines": 100_000, "text": 2_000_000}
"""Lines or characters that val and test have at most where shares aren't asked for: more would only
take longer to score."""
LINES_AT_ONCE = 1 << 15


class Spans(NamedTuple):
    """Stretches of a text's bytes, each (D,) int64: in ``lines`` mode a line, without its end."""

    begin: np.ndarray
    end: np.ndarray

    def take(self, index: np.ndarray) -> Spans:
        return Spans(self.begin[index], self.end[index])


@dataclass(frozen=True)
class Documents:
    """Which parts of a text are the documents of each split."""

    text: Text
    mode: Mode
    reason: str
    """Why this mode, in words."""
    shares: tuple[float, float, float]
    spans: dict[str, Spans]
    blank_lines: int = 0
    """Lines left out because nothing stands on them (``lines`` mode)."""
    capped: bool = False
    """Val and test have less than their shares, which are large enough."""

    def read(self, split: str) -> Iterator[list[str]]:
        """The documents of a split, some at a time; in ``text`` mode its one document, in pieces."""
        spans = self.spans[split]
        if self.mode == "text":
            for begin, end in zip(*spans, strict=True):
                yield from ([piece] for piece in self.text.pieces(int(begin), int(end)))
            return
        for at in range(0, len(spans.begin), LINES_AT_ONCE):
            yield _lines(self.text, spans.take(np.arange(at, min(at + LINES_AT_ONCE, len(spans.begin)))))

    def all(self, split: str) -> list[str]:
        """The documents of a split, in memory together."""
        found = [document for documents in self.read(split) for document in documents]
        return found if self.mode == "lines" or not found else ["".join(found)]

    def pieces(self, splits: tuple[str, ...], line_end: str) -> Iterator[str]:
        """The text of some splits, in pieces; lines end in ``line_end``."""
        for split in splits:
            for documents in self.read(split):
                yield documents[0] if self.mode == "text" else line_end.join([*documents, ""])

    def head(self, split: str, chars: int) -> str:
        """The first characters of a split, its documents one after the other; no more of it is read."""
        found: list[str] = []
        for piece in self.pieces((split,), ""):
            found.append(piece[:chars])
            chars -= len(found[-1])
            if not chars:
                break
        return "".join(found)

    def tail(self, split: str, chars: int) -> str:
        """The last characters of a split's last document."""
        begin, end = (int(part[-1]) for part in self.spans[split])
        return self.text.data[max(begin, end - 4 * chars) : end].decode(errors="ignore")[-chars:]

    def digest(self, split: str) -> str:
        """sha256 of a split's documents in their order."""
        digest = Digest(self.mode)
        for documents in self.read(split):
            digest.add(documents)
        return digest.hex()


class Digest:
    """sha256 of documents, some at a time: in ``lines`` mode with newlines between them."""

    def __init__(self, mode: Mode) -> None:
        self._sha256, self._between = hashlib.sha256(), b"\n" if mode == "lines" else b""
        self._begun = False

    def add(self, documents: list[str]) -> None:
        self._sha256.update(self._between if self._begun else b"")
        self._sha256.update("\n".join(documents).encode())
        self._begun = True

    def hex(self) -> str:
        return self._sha256.hexdigest()


def _lines(text: Text, spans: Spans) -> list[str]:
    data = text.data
    found = [data[begin:end] for begin, end in zip(*(part.tolist() for part in spans), strict=True)]
    text.release()
    return b"\n".join(found).decode().split("\n")


def choose_mode(text: str) -> tuple[Mode, str]:
    """``lines`` for a list of short independent lines, ``text`` for prose; and why."""
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
    return "lines", f"it is a list of {len(lines):,} short lines (median {median} characters)"


def line_spans(text: Text) -> tuple[Spans, int]:
    """The lines on which something stands, and how many others there are."""
    newlines, at = [], 0
    for block in text.blocks():
        newlines.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + at)
        at += len(block)
    ends = np.concatenate(newlines)
    if not len(ends) or ends[-1] != text.size - 1:
        ends = np.append(ends, text.size)
    begins = np.concatenate([[0], ends[:-1] + 1])
    spans = Spans(begins, ends)
    inked = np.flatnonzero(_inked(text, spans))
    return spans.take(inked), len(ends) - len(inked)


def _inked(text: Text, spans: Spans) -> np.ndarray:
    """(D,) bool: whether something stands on a line. Most lines show it by their first byte."""
    inked = np.zeros(len(spans.begin), bool)
    nth, at = 0, 0
    for block in text.blocks():
        data = np.frombuffer(block, np.uint8)
        upto = int(np.searchsorted(spans.begin, at + len(block)))
        first = data[spans.begin[nth:upto] - at]
        inked[nth:upto] = (first > 0x20) & (first < 0x7F)
        nth, at = upto, at + len(block)
    for i in np.flatnonzero(~inked & (spans.end > spans.begin)):
        inked[i] = bool(text.data[spans.begin[i] : spans.end[i]].decode().strip())
    return inked


def _shuffled(n: int) -> np.ndarray:
    """The order in which n lines are dealt to splits: that of shuffling a list of them."""
    order = array("I", range(n))
    random.Random(SHUFFLE_SEED).shuffle(order)
    return np.frombuffer(order, np.uintc)


def _twins(text: Text, spans: Spans) -> np.ndarray:
    """(D,) int64: the group of equal lines that each is in, numbered by first appearance."""
    groups: dict[bytes, int] = {}
    nth = [groups.setdefault(text.data[a:b], len(groups)) for a, b in zip(*spans, strict=True)]
    return np.array(nth, np.int64)


def _bounds(n: int, shares: tuple[float, float, float], most: int | None) -> tuple[int, int]:
    """Where val and test begin among n units, of which each may have ``most``."""
    # Rounded first: 0.9 + 0.05 is a little more than 0.95 in binary.
    val, test = int(round(n * shares[0], 6)), int(round(n * (shares[0] + shares[1]), 6))
    if most is not None and max(test - val, n - test) > most:
        return n - 2 * most, n - most
    return val, test


def _cut_lines(
    text: Text, spans: Spans, shares: tuple[float, float, float], most: int | None, dedupe: bool
) -> tuple[list[Spans], bool]:
    """Lines of each split, and whether val and test are capped; ``dedupe`` keeps equal lines together."""
    group_D = _twins(text, spans) if dedupe else np.arange(len(spans.begin))
    units = int(group_D.max()) + 1
    a, b = _bounds(units, shares, most)
    order = _shuffled(units)
    if not dedupe:
        parts = [spans.take(order[slice(*edges)]) for edges in ((0, a), (a, b), (b, None))]
    else:
        place = np.empty(units, np.int64)
        place[order] = np.arange(units)
        dealt = np.argsort(place[group_D], kind="stable")
        edges = np.searchsorted(place[group_D][dealt], [0, a, b, units])
        parts = [spans.take(dealt[i:j]) for i, j in pairwise(edges)]
    return parts, (a, b) != _bounds(units, shares, None)


def _cut_text(text: Text, shares: tuple[float, float, float], most: int | None) -> tuple[list[Spans], bool]:
    a, b = _bounds(text.chars, shares, most)
    edges = [0, text.byte_of(a), text.byte_of(b), text.size]
    # An empty split has no document.
    parts = [Spans(np.arange(i, i + (j > i)), np.arange(j, j + (j > i))) for i, j in pairwise(edges)]
    return parts, (a, b) != _bounds(text.chars, shares, None)


def make_documents(text: Text, config: CorpusConfig) -> Documents:
    """Split a text, lines shuffled by a fixed seed, running text cut where the shares say.

    Raises UserError where there is nothing to learn, or a split would be empty although its share
    isn't 0.
    """
    head = text.head(LOOKED_AT)
    if len(set(head.strip())) < 2 and text.size <= LOOKED_AT:
        raise UserError("the text has a single kind of character; there is nothing to learn")
    mode, reason = (config.mode, "asked for") if config.mode != "auto" else choose_mode(head)
    shares = split_shares(config.split, mode)
    most = MOST_HELD_OUT[mode] if config.split == "auto" else None
    blank = 0
    if mode == "lines":
        spans, blank = line_spans(text)
        if len(spans.begin) < 2:
            raise UserError("only one line to learn from; use --mode text, or give more lines")
        parts, capped = _cut_lines(text, spans, shares, most, config.dedupe)
    elif config.dedupe:
        raise UserError("--dedupe is for lines, and this text is one document; add --mode lines")
    else:
        parts, capped = _cut_text(text, shares, most)
    for name, share, part in zip(SPLITS, shares, parts, strict=True):
        if share and not len(part.begin):
            unit = "lines" if mode == "lines" else "characters"
            raise UserError(
                f"too short: the {name} split would be empty; give more {unit}, "
                "or other shares, such as --split 0.5,0.25,0.25"
            )
    return Documents(text, mode, reason, shares, dict(zip(SPLITS, parts, strict=True)), blank, capped)


def unsplit(text: Text, name: str, mode: Mode) -> Documents:
    """A text that isn't split: all of it under one name."""
    spans = line_spans(text)[0] if mode == "lines" else Spans(np.array([0]), np.array([text.size]))
    return Documents(text, mode, "as the run's", (1.0, 0.0, 0.0), {name: spans})
