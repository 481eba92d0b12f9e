"""Reading a text file, with an error a user can act on for everything that isn't one."""

from __future__ import annotations

import codecs
from pathlib import Path

from makemore.errors import UserError


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file: no byte-order mark, line ends as newlines.

    Raises UserError if it is missing, a folder, unreadable, empty, binary or not in ``encoding``.
    """
    try:
        codec = codecs.lookup(encoding).name
    except LookupError:
        raise UserError(f"unknown encoding {encoding!r}; try utf-8, utf-16, latin-1 or cp1252") from None
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; give a text file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"can't read {path}: {reason}") from None
    return decode_text(data, str(path), codec)


def decode_text(data: bytes, name: str, encoding: str = "utf-8") -> str:
    """As ``read_text``, of bytes already in memory."""
    if not data.strip():
        raise UserError(f"{name} is empty; give a file with text in it")
    if encoding == "utf-8" and b"\0" in data[:65536]:
        at = data.index(b"\0")
        raise UserError(f"{name} looks binary (zero byte at {at}); give a text file, or its --encoding")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not {encoding}: byte 0x{error.object[error.start]:02x} at {error.start}; "
            f"name its encoding, such as --encoding latin-1"
        ) from None
    except (LookupError, UnicodeError, AssertionError):
        raise UserError(f"{name} can't be decoded as {encoding}; name another --encoding") from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if any("\ud800" <= c <= "\udfff" for c in set(text)):
        raise UserError(f"{name} decodes to lone surrogates, which no text has; check --encoding")
    return text
