"""One token a character: the alphabet of the text, in code-point order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from makemore.tokenizers.base import Tokenizer


def code_points(text: str) -> np.ndarray:
    """(N,) uint32 code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


class CharTokenizer(Tokenizer):
    """Ids 1… are the characters of the alphabet, sorted by code point; 0 is the boundary."""

    name = "char"

    def __init__(self, alphabet: str) -> None:
        points = code_points(alphabet)
        if len(points) == 0 or (np.diff(points.astype(np.int64)) <= 0).any():
            raise ValueError("an alphabet is a sorted, non-empty set of characters")
        self.alphabet = alphabet
        self.vocab_size = len(points) + 1
        # A lookup table over code points: encoding is one gather, however long the text.
        self._table = np.zeros(int(points[-1]) + 2, dtype=np.int64)
        self._table[points] = np.arange(1, self.vocab_size)
        self._pieces = [b"\n", *(c.encode("utf-8", errors="surrogatepass") for c in alphabet)]

    @classmethod
    def fit(cls, text: str, option: str = "") -> Self:
        points = np.unique(code_points(text))
        return cls(points.astype("<u4").tobytes().decode("utf-32-le", errors="surrogatepass"))

    def _ids(self, text: str) -> np.ndarray:
        points = np.minimum(code_points(text), np.uint32(len(self._table) - 1))
        return self._table[points]

    def encode(self, text: str) -> np.ndarray:
        ids = self._ids(text)
        if not ids.all():
            self.require_spellable(text)
        return ids

    def encode_lines(self, lines: Sequence[str]) -> np.ndarray:
        # In one piece: the boundary is the newline that joins the lines.
        text = "".join(line + "\n" for line in lines)
        points, ids = code_points(text), self._ids(text)
        newline = points == ord("\n")
        if not ids[~newline].all():
            self.require_spellable("".join(lines))
        ids[newline] = self.boundary_id
        return ids

    def unspellable(self, text: str) -> set[str]:
        missing = np.unique(code_points(text)[self._ids(text) == 0])
        return {chr(int(point)) for point in missing}

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        return b"".join([self._pieces[i] for i in np.asarray(ids, dtype=np.int64).tolist()])

    def token_bytes(self) -> np.ndarray:
        return np.array([len(piece) for piece in self._pieces], dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "alphabet": self.alphabet}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(str(data["alphabet"]))
