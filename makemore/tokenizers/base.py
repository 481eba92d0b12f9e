"""What a tokenizer is: text to ids and back, without loss on the text it was fitted on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from makemore.errors import UserError


class Tokenizer(ABC):
    """Maps text to token ids; id 0 is the boundary, which no text encodes to."""

    name: ClassVar[str]
    boundary_id: ClassVar[int] = 0
    whole_text: ClassVar[bool] = False
    """True: fitted on all splits, so that held-out characters can be spelled; False: on train alone."""
    vocab_size: int
    note: str = ""
    """One line worth telling the user, once fitted."""

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned integer type that holds every id."""
        return np.min_scalar_type(self.vocab_size - 1)

    @classmethod
    @abstractmethod
    def fit(cls, pieces: Iterable[str], option: str) -> Self:
        """Make a tokenizer for a text, whose pieces are iterated over once.

        ``option`` is what follows the colon of its spelling. Raises UserError where it has no meaning.
        """

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, (N,) of ``dtype``. Raises UserError where a character can't be spelled."""

    def encode_lines(self, lines: Sequence[str]) -> np.ndarray:
        """Ids of lines one after the other, each ended by the boundary, (N,) of ``dtype``."""
        end = np.array([self.boundary_id], self.dtype)
        pieces = [piece for line in lines for piece in (self.encode(line), end)]
        return np.concatenate(pieces) if pieces else np.zeros(0, self.dtype)

    @abstractmethod
    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The UTF-8 bytes that ids stand for; the boundary is a newline."""

    @abstractmethod
    def token_bytes(self) -> np.ndarray:
        """(V,) int64: UTF-8 bytes each token stands for; the boundary counts 1 (the newline)."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All that ``from_dict`` needs, as JSON values."""

    @classmethod
    @abstractmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The tokenizer that ``to_dict`` described. Raises KeyError, TypeError, ValueError if damaged."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text that ids stand for; bytes that aren't UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def unspellable(self, text: str) -> set[str]:
        """Characters of a text that this tokenizer has no ids for."""
        return set()

    def without_unspellable(self, text: str) -> str:
        """The text less the characters that can't be spelled."""
        unknown = self.unspellable(text)
        return text.translate(dict.fromkeys(map(ord, unknown))) if unknown else text

    def require_spellable(self, text: str) -> None:
        """Raises UserError, naming the characters, where some of the text can't be spelled."""
        unknown = self.unspellable(text)
        if unknown:
            shown = " ".join(repr(c) for c in sorted(unknown)[:8])
            more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
            raise UserError(f"the model never saw {shown}{more}; leave them out, or pass --unknown skip")
