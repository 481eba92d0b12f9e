"""Tokenizer interface: convert text to token ids and back, without loss on the text it was fitted to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from makemore.errors import UserError

MAX_VOCAB_SIZE = 1 << 20
NEWLINE_HINT = r"type a newline as $'\n' (bash, zsh)"


class Tokenizer(ABC):
    """Maps text to token ids; id 0 is the document boundary, which no text encodes to."""

    name: ClassVar[str]
    boundary_id: ClassVar[int] = 0
    has_option: ClassVar[bool] = True
    """Whether a spec may have an option after a colon, such as ``bpe:512``."""
    fits_all_splits: ClassVar[bool] = False
    """Fit to all splits (to include held-out characters) instead of train alone."""
    vocab_size: int
    note: str = ""
    """A one-line note for the user after fitting, or empty."""

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned integer type that holds every id."""
        return np.min_scalar_type(self.vocab_size - 1)

    @classmethod
    @abstractmethod
    def fit(cls, pieces: Iterable[str], option: str) -> Self:
        """Fit a tokenizer to a text, whose pieces are iterated over once.

        ``option`` is the part of the spec after the colon. Raises UserError if it is invalid.
        """

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, (N,) of ``dtype``. Raises UserError for unknown characters."""

    def encode_lines(self, lines: Sequence[str]) -> np.ndarray:
        """Token ids of consecutive lines, each followed by the boundary, (N,) of ``dtype``."""
        end = np.array([self.boundary_id], self.dtype)
        pieces = [piece for line in lines for piece in (self.encode(line), end)]
        return np.concatenate(pieces) if pieces else np.zeros(0, self.dtype)

    @abstractmethod
    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The UTF-8 bytes of token ids; the boundary becomes a newline."""

    def token_text(self, token: int) -> str:
        """A token as text; invalid UTF-8 bytes as ``\\xNN``."""
        return self.decode_bytes([token]).decode("utf-8", errors="backslashreplace")

    @abstractmethod
    def token_bytes(self) -> np.ndarray:
        """(V,) int64: number of UTF-8 bytes of each token; the boundary counts 1 (the newline)."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """State for ``from_dict``, as JSON values."""

    @classmethod
    @abstractmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Load the result of ``to_dict``. Raises KeyError, TypeError or ValueError if it is damaged."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of token ids; invalid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def unknown_chars(self, text: str) -> set[str]:
        """Characters of a text that this tokenizer can't encode."""
        return set()

    def remove_unknown(self, text: str) -> str:
        """The text without characters that this tokenizer can't encode."""
        unknown = self.unknown_chars(text)
        return text.translate(dict.fromkeys(map(ord, unknown))) if unknown else text

    def require_known(self, text: str) -> None:
        """Raise UserError, listing the characters, if this tokenizer can't encode the text."""
        unknown = self.unknown_chars(text)
        if unknown:
            shown = " ".join(repr(c) for c in sorted(unknown)[:8])
            more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
            hint = f"; {NEWLINE_HINT}" if r"\n" in text else ""
            raise UserError(
                f"not in the vocabulary: {shown}{more}; remove them, or pass --unknown skip{hint}"
            )


class PieceTokenizer(Tokenizer):
    """A tokenizer with a fixed byte string per token."""

    _pieces: list[bytes]
    """Bytes of each token; the boundary's are a newline."""

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        return b"".join([self._pieces[i] for i in np.asarray(ids).tolist()])

    def token_bytes(self) -> np.ndarray:
        return np.array([len(piece) for piece in self._pieces], np.int64)


def parse_vocab_size(name: str, option: str, minimum: int) -> int:
    """The vocabulary size in the spec ``name:option``. Raises UserError if it isn't a number in range."""
    is_number = option.isascii() and option.isdecimal()
    if not is_number or not minimum <= int(option) <= MAX_VOCAB_SIZE:
        raise UserError(
            f"--tokenizer '{name}:{option}': give a size from {minimum} to {MAX_VOCAB_SIZE}, "
            f"such as {name}:512"
        )
    return int(option)


def size_note(size: int, requested: int, note: str) -> str:
    """Tell the user if the text supports fewer tokens than requested; otherwise ``note``."""
    return f"the text supports {size:,} tokens, not {requested:,}" if size < requested else note
