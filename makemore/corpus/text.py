"""A text as normalised UTF-8, in memory or mapped from disk, known by its content."""

from __future__ import annotations

import codecs
import hashlib
import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

from makemore.corpus.decoding import BLOCK, blank_text, decode_blocks
from makemore.corpus.source import Source, read_part
from makemore.errors import UserError

IN_MEMORY = 1 << 22
"""Bytes of a text that is held in memory; a longer one is mapped."""


@dataclass(frozen=True)
class Text:
    """UTF-8 without a byte-order mark, line ends as newlines."""

    data: bytes | mmap.mmap
    digest: str
    """sha256 of the bytes."""
    chars: int

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.data)

    @staticmethod
    def of(text: str) -> Text:
        """A text that is at hand already."""
        data = text.encode()
        return Text(data, hashlib.sha256(data).hexdigest(), len(text))

    def blocks(self, begin: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from ``begin`` to ``end``, in blocks; a mapped text's memory is given back."""
        end = self.size if end is None else end
        for at in range(begin, end, BLOCK):
            yield self.data[at : min(at + BLOCK, end)]
            self.release()

    def pieces(self, begin: int = 0, end: int | None = None) -> Iterator[str]:
        """The same as text, in pieces that end where a line does, where there are lines."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        held = ""
        for block in self.blocks(begin, end):
            piece = held + decoder.decode(block)
            cut = piece.rfind("\n") + 1 or len(piece)
            held = piece[cut:]
            yield piece[:cut]
        if held:
            yield held

    def head(self, size: int) -> str:
        """The first ``size`` bytes, up to a line's end where that isn't all."""
        data = self.data[:size]
        if size < self.size:
            data = data[: data.rfind(b"\n") + 1] or data
        return data.decode(errors="ignore")

    def byte_of(self, char: int) -> int:
        """Where the ``char``-th character begins, in bytes."""
        if self.chars == self.size:
            return char
        at = 0
        for block in self.blocks():
            starts = np.frombuffer(block, np.uint8) & 0xC0 != 0x80
            here = int(np.count_nonzero(starts))
            if char < here:
                return at + int(np.flatnonzero(starts)[char])
            char, at = char - here, at + len(block)
        return at

    def release(self) -> None:
        """Give back the memory that a mapped text's pages took, where the system can."""
        if isinstance(self.data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.data.madvise(mmap.MADV_DONTNEED)


class _Tally:
    """Counts and hashes a text on its way."""

    def __init__(self, source: Source, encoding: str) -> None:
        self.source, self.encoding = source, encoding
        self.raw, self.text = hashlib.sha256(), hashlib.sha256()
        self.size, self.chars = 0, 0

    def _raw_blocks(self, part: str) -> Iterator[bytes]:
        for block in read_part(part):
            self.raw.update(block)
            yield block

    def _pieces(self) -> Iterator[str]:
        last, blank, single = "\n", True, len(self.source.parts) == 1
        for part in self.source.parts:
            if not last.endswith("\n"):
                yield "\n"  # one file's last line doesn't run into the next one's first
            name = self.source.name if single else part
            for piece in decode_blocks(self._raw_blocks(part), name, self.encoding, may_be_blank=True):
                last, blank = piece, blank and not piece.strip()
                yield piece
        if blank:
            raise blank_text(self.source.name)

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces():
            data = piece.encode()
            self.text.update(data)
            self.size, self.chars = self.size + len(data), self.chars + len(piece)
            yield data


def store_text(source: Source, encoding: str = "utf-8") -> Text:
    """The text of a source, whatever its size.

    Raises UserError for what is no text, or where there is no room for a copy of it.
    """
    tally = _Tally(source, encoding)
    held: list[bytes] = []
    passing = iter(tally)
    for data in passing:
        held.append(data)
        if tally.size > IN_MEMORY:
            return _large(source, tally, held, passing)
    return Text(b"".join(held), tally.text.hexdigest(), tally.chars)


def _large(source: Source, tally: _Tally, held: list[bytes], passing: Iterator[bytes]) -> Text:
    """Mapped: the user's own file where that is normalised UTF-8 already, else a passing copy."""
    if source.plain is None:
        return _copied(tally, held, passing)
    for _ in passing:
        pass
    if tally.raw.digest() == tally.text.digest():
        with source.plain.open("rb") as file:
            return _mapped(file, tally)
    again = _Tally(source, tally.encoding)
    return _copied(again, [], iter(again))


def _copied(tally: _Tally, held: list[bytes], passing: Iterator[bytes]) -> Text:
    with tempfile.TemporaryFile(prefix="makemore-") as file:
        try:
            for data in held:
                file.write(data)
            held.clear()
            for data in passing:
                file.write(data)
            file.flush()
        except OSError as error:
            raise UserError(
                f"no room for a copy of {tally.source.name} in {tempfile.gettempdir()} ({error.strerror}); "
                "set TMPDIR to a folder with room"
            ) from None
        return _mapped(file, tally)


def _mapped(file: IO[bytes], tally: _Tally) -> Text:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return Text(data, tally.text.hexdigest(), tally.chars)
