"""Byte tokenizer: one token per UTF-8 byte, so it encodes any text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from makemore.tokenizers.base import Tokenizer


class ByteTokenizer(Tokenizer):
    """Id ``b + 1`` is byte ``b``; 0 is the boundary."""

    name = "byte"
    has_option = False
    vocab_size = 257

    @classmethod
    def fit(cls, pieces: Iterable[str], option: str = "") -> Self:
        return cls()

    def encode(self, text: str) -> np.ndarray:
        data = text.encode("utf-8", errors="surrogatepass")
        return np.frombuffer(data, dtype=np.uint8) + np.uint16(1)

    def encode_lines(self, lines: Sequence[str]) -> np.ndarray:
        # Encode all lines at once: the newline after each becomes the boundary.
        ids = self.encode("".join([line + "\n" for line in lines]))
        ids[ids == ord("\n") + 1] = self.boundary_id
        return ids

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        ids = np.asarray(ids, dtype=np.int64)
        return np.where(ids == self.boundary_id, ord("\n"), ids - 1).astype(np.uint8).tobytes()

    def token_bytes(self) -> np.ndarray:
        return np.ones(self.vocab_size, dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls()
