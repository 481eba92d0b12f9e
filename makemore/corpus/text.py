"""A text as normalised UTF-8, in memory or in a file, identified by its sha256."""

from __future__ import annotations

import codecs
import hashlib
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np

from makemore.corpus.decoding import BLOCK, REPLACEMENT, blank_text_error, decode_blocks
from makemore.corpus.source import Source, read_part
from makemore.errors import UserError
from makemore.settings import CorpusConfig

MAX_IN_MEMORY_BYTES = 1 << 22
"""Largest text in bytes that is held in memory; longer texts are read from a file as needed."""

Stamp = tuple[int, int]
"""Size and modification time of a file."""


class FileData:
    """The bytes of a file, read as needed.

    It isn't memory-mapped: if a mapped file shrinks, reading it crashes the process.
    """

    def __init__(self, file: IO[bytes], name: str, stamp: Stamp) -> None:
        """``stamp``: the file's stamp before it was first read."""
        self._handle, self._name, self._stamp = os.dup(file.fileno()), name, stamp
        self.check()

    def __len__(self) -> int:
        return self._stamp[0]

    def __getitem__(self, part: slice) -> bytes:
        """Raises UserError if the file has become shorter."""
        begin, end, _ = part.indices(len(self))
        data = _read_at(self._handle, end - begin, begin)
        while len(data) < end - begin:  # a call reads 2 GB at most
            more = _read_at(self._handle, end - begin - len(data), begin + len(data))
            if not more:
                raise _changed_error(self._name)
            data += more
        return data

    def check(self) -> None:
        """Raise UserError if the file has changed since it was first read."""
        if _stamp(os.fstat(self._handle)) != self._stamp:
            raise _changed_error(self._name)

    def __del__(self) -> None:
        os.close(self._handle)


if sys.platform == "win32":

    def _read_at(handle: int, size: int, offset: int) -> bytes:
        os.lseek(handle, offset, os.SEEK_SET)
        return os.read(handle, size)

else:
    _read_at = os.pread


def _stamp(info: os.stat_result) -> Stamp:
    return info.st_size, info.st_mtime_ns


def _changed_error(name: str) -> UserError:
    return UserError(f"{name} changed while it was read; run the command again, or on a copy")


@dataclass(frozen=True)
class Text:
    """A text as UTF-8 without a byte-order mark, with line ends as newlines."""

    data: bytes | FileData
    digest: str
    """sha256 of the bytes."""
    chars: int
    notes: tuple[str, ...] = ()
    """One-line notes for the user on how the text was read."""

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
        """The bytes from ``begin`` to ``end`` in blocks. Raises UserError if their file has changed."""
        end = self.size if end is None else end
        for at in range(begin, end, BLOCK):
            yield self.data[at : min(at + BLOCK, end)]
            self.check()

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

    def check(self) -> None:
        """Raise UserError if the text is in a file that has changed."""
        if isinstance(self.data, FileData):
            self.data.check()


class _Reader:
    """Reads a source as normalised UTF-8, counting and hashing it."""

    def __init__(self, source: Source, config: CorpusConfig) -> None:
        self.source, self.config = source, config
        self.raw_hash, self.text_hash = hashlib.sha256(), hashlib.sha256()
        self.size, self.chars, self.replaced = 0, 0, 0
        self.damaged: list[str] = []

    def _raw_blocks(self, part: str) -> Iterator[bytes]:
        for block in read_part(part):
            self.raw_hash.update(block)
            yield block

    def _pieces(self) -> Iterator[str]:
        last, blank, single = "\n", True, len(self.source.parts) == 1
        for part in self._readable_parts():
            if not last.endswith("\n"):
                yield "\n"  # separate this file's last line from the next file's first
            name = self.source.name if single else part
            for piece in decode_blocks(self._raw_blocks(part), name, self.config.encoding):
                last, blank = piece, blank and not piece.strip()
                yield piece
        if blank:
            raise blank_text_error(self.source.name)

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces():
            data = piece.encode()
            self.text_hash.update(data)
            self.size, self.chars = self.size + len(data), self.chars + len(piece)
            self.replaced += piece.count(REPLACEMENT)
            yield data

    def _readable_parts(self) -> Sequence[str]:
        """Files to read; with ``skip_damaged`` only the undamaged ones, or all if every file is damaged."""
        parts = self.source.parts
        if self.config.skip_damaged:
            files = [part for part in parts if part != "-" and os.path.exists(part)]
            self.damaged = list(filter(self._is_damaged, files))
        return [part for part in parts if part not in self.damaged] or parts

    def _is_damaged(self, part: str) -> bool:
        try:
            for _ in decode_blocks(read_part(part), part, self.config.encoding):
                pass
        except UserError:
            return True
        return False

    def text(self, data: bytes | FileData) -> Text:
        """The text, once all blocks have been read."""
        notes = []
        if self.replaced and self.config.encoding.endswith(":replace"):
            notes.append(f"invalid bytes replaced by U+FFFD: {self.replaced:,}")
        if self.damaged:
            more = f" and {len(self.damaged) - 5} more" if self.damaged[5:] else ""
            notes.append(f"skipped {len(self.damaged):,} damaged files: {', '.join(self.damaged[:5])}{more}")
        return Text(data, self.text_hash.hexdigest(), self.chars, tuple(notes))


def read_source(source: Source, config: CorpusConfig | None = None) -> Text:
    """Read a source of any size.

    Raises UserError if it isn't text, or if there is no disk space for a copy.
    """
    reader = _Reader(source, config or CorpusConfig())
    buffered: list[bytes] = []
    blocks = iter(reader)
    for data in blocks:
        buffered.append(data)
        if reader.size > MAX_IN_MEMORY_BYTES:
            return _keep_in_file(source, reader, buffered, blocks)
    return reader.text(b"".join(buffered))


def _keep_in_file(source: Source, reader: _Reader, buffered: list[bytes], blocks: Iterator[bytes]) -> Text:
    """Use the user's file if it is normalised UTF-8 already, else a temporary copy."""
    path = source.plain_file
    if path is None or not path.is_file():  # a pipe can't be read again
        return _copy(reader, buffered, blocks)
    stamp = _stamp(path.stat())
    for _ in blocks:
        pass
    if reader.raw_hash.digest() == reader.text_hash.digest():
        with path.open("rb") as file:
            return reader.text(FileData(file, str(path), (reader.size, stamp[1])))
    second = _Reader(source, reader.config)
    return _copy(second, [], iter(second))


def _copy(reader: _Reader, buffered: list[bytes], blocks: Iterator[bytes]) -> Text:
    with tempfile.TemporaryFile(prefix="makemore-") as file:
        try:
            file.writelines(itertools.chain(buffered, blocks))
            file.flush()
        except OSError as error:
            raise UserError(
                f"can't copy {reader.source.name} to {tempfile.gettempdir()} ({error.strerror}); "
                "set TMPDIR to a directory with free space"
            ) from None
        return reader.text(FileData(file, "the temporary copy", _stamp(os.fstat(file.fileno()))))
