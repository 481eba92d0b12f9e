"""Read files and JSON of unknown origin: regular files only, limited in size, and in nesting for JSON."""

from __future__ import annotations

import errno
import json
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 64 << 20
"""Maximum bytes of a JSON file; real files, with vocabularies of a few megabytes, are far smaller."""
MAX_JSON_DEPTH = 100
"""Maximum nesting of arrays and objects, so that functions may walk through a value recursively."""


def file_size(path: Path) -> int:
    """Size of a regular file in bytes; follows links. Raises OSError for pipes, which would block."""
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return info.st_size


def read_limited(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read a regular file. Raises OSError if it is another kind of file, or larger than ``max_bytes``."""
    if file_size(path) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes:,} bytes")
    return path.read_bytes()


def read_foreign_json(path: Path) -> Any:
    """Parse another program's JSON file, in UTF-8. Raises OSError like ``read_limited``, and ValueError."""
    return parse_json(read_limited(path).decode("utf-8"))


def parse_json(data: str | bytes) -> Any:
    """Parse JSON. Raises ValueError if it is malformed, or nested more than ``MAX_JSON_DEPTH`` deep."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
