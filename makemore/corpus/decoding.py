"""Decode bytes to text block by block, with errors the user can act on."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from makemore.errors import UserError

BLOCK = 1 << 22
"""Bytes per read."""


class UnusableTextError(UserError):
    """The input can't be used as a text: it is blank, not text, or too short."""


class NotTextError(UnusableTextError):
    """The input is binary, or text in another encoding than expected."""


def codec_name(encoding: str) -> str:
    """Python's name for an encoding. Raises UserError if it is unknown."""
    try:
        return codecs.lookup(encoding).name
    except (LookupError, ValueError):  # ValueError: a zero byte in the name
        raise UserError(f"unknown encoding {encoding!r}; try utf-8, utf-16, latin-1 or cp1252") from None


def normalize_newlines(text: str) -> str:
    """The text with its line ends as newlines, as in every text that is read from a file."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decode_blocks(
    blocks: Iterable[bytes], name: str, encoding: str = "utf-8", allow_blank: bool = False
) -> Iterator[str]:
    """Decode a file's blocks, without the byte-order mark and with line ends as newlines.

    Raises UserError, with the byte offset, if the text is blank, binary or not in ``encoding``.
    """
    codec = codec_name(encoding)
    decode = _Decoder(name, codec)
    blank, first, pending = True, True, ""
    for block in blocks:
        blank = blank and not block.strip()
        text = pending + decode(block)
        pending = ""
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        if text.endswith("\r"):  # the next block may start with the \n
            text, pending = text[:-1], "\r"
        if text:
            yield _reject_surrogates(normalize_newlines(text), name)
    rest = normalize_newlines(pending + decode(b"", final=True))
    if blank and not allow_blank:
        raise blank_text_error(name)
    if rest:
        yield _reject_surrogates(rest.removeprefix("\ufeff") if first else rest, name)


def blank_text_error(name: str) -> UserError:
    """The error for an empty or blank text."""
    return UnusableTextError(f"{name} is empty; give a file that contains text")


class _Decoder:
    """Incremental decoder whose errors give the byte offset in the file."""

    def __init__(self, name: str, codec: str) -> None:
        self.name, self.codec = name, codec
        self._pos = 0
        info = codecs.lookup(codec)
        # rot13, zlib and others map text to text or bytes to bytes.
        if info.incrementaldecoder is None or not getattr(info, "_is_text_encoding", True):
            raise self._codec_error()
        self._decoder = info.incrementaldecoder()

    def _codec_error(self) -> UserError:
        return UserError(f"{self.name} can't be decoded as {self.codec}; pass another --encoding")

    def __call__(self, block: bytes, final: bool = False) -> str:
        if self.codec == "utf-8" and self._pos < 65536 and (at := block[: 65536 - self._pos].find(0)) >= 0:
            raise NotTextError(
                f"{self.name} looks binary (zero byte at {self._pos + at}); give a text file, "
                "or pass its --encoding"
            )
        try:
            n_pending = len(self._decoder.getstate()[0])
            text = self._decoder.decode(block, final)
        except UnicodeDecodeError as error:
            offset = self._pos - n_pending + error.start
            raise NotTextError(
                f"{self.name} is not {self.codec}: byte 0x{error.object[error.start]:02x} at {offset}; "
                f"pass its encoding, such as --encoding latin-1"
            ) from None
        except (LookupError, UnicodeError, AssertionError, NotImplementedError):
            raise self._codec_error() from None
        self._pos += len(block)
        return text


def _reject_surrogates(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name} decodes to lone surrogates, which aren't text; check --encoding") from None
    return text


def decode_text(data: bytes, name: str, encoding: str = "utf-8", allow_blank: bool = False) -> str:
    """``decode_blocks`` for bytes in memory."""
    return "".join(decode_blocks([data], name, encoding, allow_blank))


def read_blocks(path: Path) -> Iterator[bytes]:
    """Read a file in blocks of bytes. Raises UserError if it is missing, a directory or unreadable."""
    try:
        if path.is_dir():
            raise UserError(f"{path} is a directory; give a text file")
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"can't read {path}: {reason}") from None


def read_text(path: Path, encoding: str = "utf-8", allow_blank: bool = False) -> str:
    """Read a text file. Raises UserError as ``read_blocks`` and ``decode_blocks`` do."""
    return "".join(decode_blocks(read_blocks(path), str(path), encoding, allow_blank))
