"""Character tokenizer: one token per distinct character of the text, in code-point order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from makemore.tokenizers.base import Tokenizer

CODE_POINTS = 0x110000


def code_points(text: str) -> np.ndarray:
    """(N,) uint32 code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


class CharTokenizer(Tokenizer):
    """Ids from 1 on are the characters of the alphabet, sorted by code point; 0 is the boundary.

    Encoding is a table lookup: by byte if the text is ASCII and ids are uint8, else by code point.
    """

    name = "char"
    has_option = False
    fits_all_splits: ClassVar[bool] = True

    def __init__(self, alphabet: str) -> None:
        points = code_points(alphabet)
        if len(points) == 0 or (np.diff(points.astype(np.int64)) <= 0).any():
            raise ValueError("the alphabet must be a sorted, non-empty set of characters")
        self.alphabet = alphabet
        self.vocab_size = len(points) + 1
        self._id_of = np.zeros(CODE_POINTS, self.dtype)
        self._id_of[points] = np.arange(1, self.vocab_size)
        self._byte_table = self._id_of[:256].tobytes() if self.dtype == np.uint8 else None
        self._point_of = np.insert(points, 0, ord("\n"))

    @classmethod
    def fit(cls, pieces: Iterable[str], option: str = "") -> Self:
        seen = np.zeros(CODE_POINTS, bool)
        for piece in pieces:
            seen[code_points(piece)] = True
        points = np.flatnonzero(seen).astype("<u4")
        return cls(points.tobytes().decode("utf-32-le", errors="surrogatepass"))

    def _ids(self, text: str) -> np.ndarray:
        """Token ids; characters outside the alphabet become the boundary."""
        if self._byte_table is not None and text.isascii():
            return np.frombuffer(bytearray(text.encode("ascii").translate(self._byte_table)), np.uint8)
        return self._id_of[code_points(text)]

    def encode(self, text: str) -> np.ndarray:
        ids = self._ids(text)
        if not ids.all():
            self.require_known(text)
        return ids

    def encode_lines(self, lines: Sequence[str]) -> np.ndarray:
        # Encode all lines at once: the newline after each becomes the boundary.
        ids = self._ids("".join([line + "\n" for line in lines]))
        newline = self._id_of[ord("\n")]
        if newline != self.boundary_id:
            ids[ids == newline] = self.boundary_id
        if len(ids) - np.count_nonzero(ids) != len(lines):
            self.require_known("".join(lines))
        return ids

    def unknown_chars(self, text: str) -> set[str]:
        ids = self._ids(text)
        return set() if ids.all() else set(map(chr, np.unique(code_points(text)[ids == 0]).tolist()))

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        points = self._point_of[np.asarray(ids, dtype=np.int64)]
        return points.tobytes().decode("utf-32-le", errors="surrogatepass").encode(errors="surrogatepass")

    def token_bytes(self) -> np.ndarray:
        sizes = [len(character.encode(errors="surrogatepass")) for character in self.alphabet]
        return np.array([1, *sizes], dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "alphabet": self.alphabet}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(str(data["alphabet"]))
