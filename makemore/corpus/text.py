"""A text as normalised UTF-8, in memory or memory-mapped, identified by its sha256."""

from __future__ import annotations

import codecs
import hashlib
import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

from makemore.corpus.decoding import BLOCK, blank_text_error, decode_blocks
from makemore.corpus.source import Source, read_part
from makemore.errors import UserError

MAX_IN_MEMORY_BYTES = 1 << 22
"""Largest text in bytes that is held in memory; longer texts are memory-mapped."""


@dataclass(frozen=True)
class Text:
    """A text as UTF-8 without a byte-order mark, with line ends as newlines."""

    data: bytes | mmap.mmap
    digest: str
    """sha256 of the bytes."""
    chars: int

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.data)

    @staticmethod
    def of(text: str) -> Text:
        """Make a Text from a string."""
        data = text.encode()
        return Text(data, hashlib.sha256(data).hexdigest(), len(text))

    def string(self) -> str:
        """The whole text."""
        return "".join(self.pieces())

    def blocks(self, begin: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from ``begin`` to ``end`` in blocks; memory-mapped pages are released after each."""
        end = self.size if end is None else end
        for at in range(begin, end, BLOCK):
            yield self.data[at : min(at + BLOCK, end)]
            self.release()

    def pieces(self, begin: int = 0, end: int | None = None) -> Iterator[str]:
        """``blocks`` as strings, cut at line ends where possible."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        pending = ""
        for block in self.blocks(begin, end):
            piece = pending + decoder.decode(block)
            cut = piece.rfind("\n") + 1 or len(piece)
            pending = piece[cut:]
            yield piece[:cut]
        if pending:
            yield pending

    def head(self, size: int) -> str:
        """The first ``size`` bytes as a string; a longer text is cut at a line end."""
        data = self.data[:size]
        if size < self.size:
            data = data[: data.rfind(b"\n") + 1] or data
        return data.decode(errors="ignore")

    def byte_offset(self, char: int) -> int:
        """Byte offset of character number ``char``."""
        if self.chars == self.size:
            return char
        offset = 0
        for block in self.blocks():
            starts = np.frombuffer(block, np.uint8) & 0xC0 != 0x80
            n_chars = int(np.count_nonzero(starts))
            if char < n_chars:
                return offset + int(np.flatnonzero(starts)[char])
            char, offset = char - n_chars, offset + len(block)
        return offset

    def release(self) -> None:
        """Return a memory-mapped text's pages to the system, where supported."""
        if isinstance(self.data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.data.madvise(mmap.MADV_DONTNEED)


class _Reader:
    """Reads a source as normalised UTF-8, counting and hashing it."""

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
                yield "\n"  # separate this file's last line from the next file's first
            name = self.source.name if single else part
            for piece in decode_blocks(self._raw_blocks(part), name, self.encoding, allow_blank=True):
                last, blank = piece, blank and not piece.strip()
                yield piece
        if blank:
            raise blank_text_error(self.source.name)

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces():
            data = piece.encode()
            self.text.update(data)
            self.size, self.chars = self.size + len(data), self.chars + len(piece)
            yield data


def read_source(source: Source, encoding: str = "utf-8") -> Text:
    """Read a source of any size.

    Raises UserError if it isn't text, or if there is no disk space for a copy.
    """
    reader = _Reader(source, encoding)
    buffered: list[bytes] = []
    blocks = iter(reader)
    for data in blocks:
        buffered.append(data)
        if reader.size > MAX_IN_MEMORY_BYTES:
            return _map_large(source, reader, buffered, blocks)
    return Text(b"".join(buffered), reader.text.hexdigest(), reader.chars)


def _map_large(source: Source, reader: _Reader, buffered: list[bytes], blocks: Iterator[bytes]) -> Text:
    """Memory-map the user's file if it is normalised UTF-8 already, else a temporary copy."""
    if source.plain_file is None:
        return _map_copy(reader, buffered, blocks)
    for _ in blocks:
        pass
    if reader.raw.digest() == reader.text.digest():
        with source.plain_file.open("rb") as file:
            return _map(file, reader)
    second = _Reader(source, reader.encoding)
    return _map_copy(second, [], iter(second))


def _map_copy(reader: _Reader, buffered: list[bytes], blocks: Iterator[bytes]) -> Text:
    with tempfile.TemporaryFile(prefix="makemore-") as file:
        try:
            for data in buffered:
                file.write(data)
            buffered.clear()
            for data in blocks:
                file.write(data)
            file.flush()
        except OSError as error:
            raise UserError(
                f"can't copy {reader.source.name} to {tempfile.gettempdir()} ({error.strerror}); "
                "set TMPDIR to a directory with free space"
            ) from None
        return _map(file, reader)


def _map(file: IO[bytes], reader: _Reader) -> Text:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return Text(data, reader.text.hexdigest(), reader.chars)
