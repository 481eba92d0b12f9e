"""Decode bytes to text block by block, with errors the user can act on."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from itertools import chain

from makemore.errors import UserError

BLOCK = 1 << 22
"""Bytes per read."""
REPLACE = "utf-8:replace"
REPLACEMENT = "\ufffd"
"""Character in place of invalid bytes."""


class UnusableTextError(UserError):
    """The input can't be used as a text: it is blank, not text, or too short."""


class NotTextError(UnusableTextError):
    """The input is binary, or text in another encoding than expected."""

    suggested_encoding: str | None = None
    """An encoding with which the text can be read without garbling it, if known."""


def parse_encoding(encoding: str) -> tuple[str, str]:
    """Python's names of a codec and its error handler; ``:replace`` replaces invalid bytes by U+FFFD.

    Raises UserError if the encoding is unknown.
    """
    name, colon, errors = encoding.partition(":")
    try:
        if not colon or errors == "replace":
            return codecs.lookup(name).name, errors or "strict"
    except (LookupError, ValueError):  # ValueError: a zero byte in the name
        pass
    raise UserError(f"unknown encoding {encoding!r}; try utf-8, utf-16, latin-1, cp1252 or utf-8:replace")


def normalize_newlines(text: str) -> str:
    """The text with its line ends as newlines, as in every text that is read from a file."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decode_blocks(blocks: Iterable[bytes], name: str, encoding: str = "utf-8") -> Iterator[str]:
    """Decode a file's blocks, without the byte-order mark and with line ends as newlines.

    Raises UserError, with the byte offset, if the text is binary or not in ``encoding``.
    """
    decode = _Decoder(name, *parse_encoding(encoding))
    first, pending = True, ""
    blocks = iter(blocks)
    for block in blocks:
        try:
            text = pending + decode(block)
        except UnicodeDecodeError as error:
            raise decode.invalid_bytes_error(error, chain([block], blocks)) from None
        pending = ""
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        if text.endswith("\r"):  # the next block may start with the \n
            text, pending = text[:-1], "\r"
        if text:
            yield _reject_surrogates(normalize_newlines(text), name)
    try:
        rest = normalize_newlines(pending + decode(b"", final=True))
    except UnicodeDecodeError as error:
        raise decode.invalid_bytes_error(error, []) from None
    if rest:
        yield _reject_surrogates(rest.removeprefix("\ufeff") if first else rest, name)


def blank_text_error(name: str) -> UserError:
    """The error for an empty or blank text."""
    return UnusableTextError(f"{name} is empty; give a file that contains text")


class _Decoder:
    """Incremental decoder that describes invalid bytes by their number and place in the file."""

    def __init__(self, name: str, codec: str, errors: str) -> None:
        self.name, self.codec = name, codec
        self._pos, self._n_pending, self._n_lines, self._is_ascii = 0, 0, 0, True
        info = codecs.lookup(codec)
        # rot13, zlib and others map text to text or bytes to bytes.
        if info.incrementaldecoder is None or not getattr(info, "_is_text_encoding", True):
            raise self._codec_error()
        self._decoder = info.incrementaldecoder(errors)

    def _codec_error(self) -> UserError:
        return UserError(f"{self.name} can't be decoded as {self.codec}; pass another --encoding")

    def __call__(self, block: bytes, final: bool = False) -> str:
        """Decode the next block. Raises UnicodeDecodeError for invalid bytes."""
        if self.codec == "utf-8" and self._pos < 65536 and (at := block[: 65536 - self._pos].find(0)) >= 0:
            raise NotTextError(
                f"{self.name} looks binary (zero byte at {self._pos + at}); give a text file, "
                "or pass its --encoding"
            )
        try:
            self._n_pending = len(self._decoder.getstate()[0])
            text = self._decoder.decode(block, final)
        except UnicodeDecodeError:
            raise
        except (LookupError, UnicodeError, AssertionError, NotImplementedError):
            raise self._codec_error() from None
        self._pos += len(block)
        self._n_lines += block.count(b"\n")
        self._is_ascii = self._is_ascii and block.isascii()
        return text

    def invalid_bytes_error(self, error: UnicodeDecodeError, rest: Iterable[bytes]) -> NotTextError:
        """The error for invalid bytes; ``rest``: the bytes from the failed block to the end of the file."""
        n_pending = self._n_pending
        first = f"0x{error.object[error.start]:02x}) at byte {self._pos - n_pending + error.start}"
        if self.codec != "utf-8":
            return NotTextError(f"{self.name} is not {self.codec} ({first}; pass its --encoding")
        n_invalid, n_valid = _count_invalid(error.object[:n_pending], rest)
        line = 1 + self._n_lines + error.object.count(b"\n", n_pending, error.start)
        text = f"{self.name} is not utf-8: {n_invalid:,} invalid byte{'s' * (n_invalid != 1)}, "
        text += f"the first ({first} in line {line:,}; "
        if self._is_ascii and n_valid <= n_invalid:
            advice = f"pass its encoding, such as --encoding cp1252 (or {REPLACE}, which replaces them)"
            return NotTextError(text + advice)
        result = NotTextError(f"{text}to replace them, pass --encoding {REPLACE}")
        result.suggested_encoding = REPLACE
        return result


def _count_invalid(pending: bytes, rest: Iterable[bytes]) -> tuple[int, int]:
    """Number of bytes that aren't UTF-8, and number of characters that are, except ASCII."""
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    n_invalid = n_valid = 0
    for block in chain([pending], rest, [b""]):
        text = decoder.decode(block, final=not block)
        n_invalid += len(block) - len(text.encode())
        n_valid += len(text) - len(text.encode("ascii", "ignore"))
    return n_invalid, n_valid


def _reject_surrogates(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name} decodes to lone surrogates, which aren't text; check --encoding") from None
    return text
