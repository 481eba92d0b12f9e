"""Characters that a terminal shows, and texts short enough for one line."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

JOINERS = "\u200c\u200d"
"""Format characters that writing needs: the zero-width non-joiner and joiner."""


def is_harmless(char: str) -> bool:
    """Whether a character is neither a control, format nor unassigned character; tabs and newlines are."""
    return char.isprintable() or char in "\n\t" or char in JOINERS or unicodedata.category(char) == "Zs"


def escape_control_chars(text: str, spell: Callable[[str], str] = repr) -> str:
    """Escape control, format and unassigned characters, except newlines and tabs.

    Args:
        spell: Returns a character's escape between quotes.
    """
    if text.isprintable():
        return text
    return "".join(char if is_harmless(char) else spell(char)[1:-1] for char in text)


def clip(text: str, max_chars: int) -> str:
    """Shorten a text to a number of characters, ending in an ellipsis."""
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"
