"""Bytes to text, piece by piece, with an error a user can act on for everything that isn't text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from makemore.errors import UserError

BLOCK = 1 << 22
"""Bytes read at once."""


class NotTextError(UserError):
    """Bytes that are no text, or text in another encoding than was asked for."""


def codec_name(encoding: str) -> str:
    """Python's name of an encoding. Raises UserError if there is none."""
    try:
        return codecs.lookup(encoding).name
    except (LookupError, ValueError):  # ValueError: a zero byte in the name
        raise UserError(f"unknown encoding {encoding!r}; try utf-8, utf-16, latin-1 or cp1252") from None


def decode_blocks(
    blocks: Iterable[bytes], name: str, encoding: str = "utf-8", may_be_blank: bool = False
) -> Iterator[str]:
    """The text of a file that comes in blocks: no byte-order mark, line ends as newlines.

    Raises UserError, naming the place, where it is blank, binary or not in ``encoding``.
    """
    codec = codec_name(encoding)
    decode = _Decoder(name, codec)
    blank, first, held = True, True, ""
    for block in blocks:
        blank = blank and not block.strip()
        text = held + decode(block)
        held = ""
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        if text.endswith("\r"):  # the newline after it may be the next block's first
            text, held = text[:-1], "\r"
        if text:
            yield _checked(text.replace("\r\n", "\n").replace("\r", "\n"), name)
    rest = (held + decode(b"", final=True)).replace("\r\n", "\n").replace("\r", "\n")
    if blank and not may_be_blank:
        raise blank_text(name)
    if rest:
        yield _checked(rest.removeprefix("\ufeff") if first else rest, name)


def blank_text(name: str) -> UserError:
    """What to say of a text without any."""
    return UserError(f"{name} is empty; give a file with text in it")


class _Decoder:
    """Decodes block after block; its errors name the byte's place in the file."""

    def __init__(self, name: str, codec: str) -> None:
        self.name, self.codec = name, codec
        self._fed = 0
        info = codecs.lookup(codec)
        # rot13, zlib and the like turn text into text, or bytes into bytes.
        if info.incrementaldecoder is None or not getattr(info, "_is_text_encoding", True):
            raise self._wrong_codec()
        self._decoder = info.incrementaldecoder()

    def _wrong_codec(self) -> UserError:
        return UserError(f"{self.name} can't be decoded as {self.codec}; name another --encoding")

    def __call__(self, block: bytes, final: bool = False) -> str:
        if self.codec == "utf-8" and self._fed < 65536 and (at := block[: 65536 - self._fed].find(0)) >= 0:
            raise NotTextError(
                f"{self.name} looks binary (zero byte at {self._fed + at}); give a text file, "
                "or its --encoding"
            )
        try:
            waiting = len(self._decoder.getstate()[0])
            text = self._decoder.decode(block, final)
        except UnicodeDecodeError as error:
            place = self._fed - waiting + error.start
            raise NotTextError(
                f"{self.name} is not {self.codec}: byte 0x{error.object[error.start]:02x} at {place}; "
                f"name its encoding, such as --encoding latin-1"
            ) from None
        except (LookupError, UnicodeError, AssertionError, NotImplementedError):
            raise self._wrong_codec() from None
        self._fed += len(block)
        return text


def _checked(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name} decodes to lone surrogates, which no text has; check --encoding") from None
    return text


def decode_text(data: bytes, name: str, encoding: str = "utf-8") -> str:
    """As ``decode_blocks``, of bytes already in memory."""
    return "".join(decode_blocks([data], name, encoding))


def read_file(path: Path) -> Iterator[bytes]:
    """A file's bytes in blocks. Raises UserError if it is missing, a folder or unreadable."""
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; give a text file")
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"can't read {path}: {reason}") from None


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file, whole. Raises UserError as ``read_file`` and ``decode_blocks`` do."""
    codec_name(encoding)
    return "".join(decode_blocks(read_file(path), str(path), encoding))
