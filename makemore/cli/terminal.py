"""Print text from files and runs with its control codes escaped."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

JOINERS = "\u200c\u200d"
"""Format characters that writing needs: the zero-width non-joiner and joiner."""


def escape_control_chars(text: str) -> str:
    """Escape control, format and unassigned characters, except newlines and tabs."""
    return _escape(text, repr)


def _escape(text: str, spell: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(c if _is_harmless(c) else spell(c)[1:-1] for c in text)


def _is_harmless(char: str) -> bool:
    return char.isprintable() or char in "\n\t" or char in JOINERS or unicodedata.category(char) == "Zs"


def echo(text: str = "", *, err: bool = False) -> None:
    """Print a message, escaped, to stdout or stderr."""
    print(escape_control_chars(text), file=sys.stderr if err else sys.stdout, flush=True)


def echo_sample(text: str, end: str = "\n") -> None:
    """Print generated text to stdout: escaped on a terminal, unchanged in a file or pipe."""
    is_terminal = sys.stdout.isatty()
    print(escape_control_chars(text) if is_terminal else text, end=end, flush=is_terminal)


def print_json(payload: dict[str, Any]) -> None:
    """Print one JSON object to stdout; NaN and infinities become null."""
    from makemore.runtime.files import finite  # imports torch

    text = json.dumps(finite(payload), ensure_ascii=False, allow_nan=False)
    print(_escape(text, json.dumps))
