"""Published encodings by name, as tiktoken has them: ``tiktoken:gpt2``."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import tiktoken

from makemore.errors import UserError, unknown_name
from makemore.tokenizers.base import Tokenizer
from makemore.tokenizers.ranks import Ranks, tokens_from_text


def fetch(name: str) -> Ranks:
    """An encoding from tiktoken's cache or the network. Raises UserError if unknown or out of reach."""
    if name not in tiktoken.list_encoding_names():
        raise unknown_name("encoding", name, tiktoken.list_encoding_names())
    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:
        reason = type(error).__name__ if isinstance(error, OSError) else str(error).splitlines()[0]
        raise UserError(
            f"--tokenizer tiktoken:{name} has to be downloaded once, and can't be ({reason}); go online, or "
            "point TIKTOKEN_CACHE_DIR at a copy of tiktoken's cache"
        ) from None
    # Special tokens have no part in a text, and gaps in the ranks no meaning.
    ranks = sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1])
    return Ranks(encoding._pat_str, [token for token, _ in ranks])


class PublishedTokenizer(Tokenizer):
    """A row for each token that occurs in train and for each byte; other tokens are spelled by their
    bytes. ``tiktoken:gpt2:full`` has a row for every token.
    """

    name = "tiktoken"

    def __init__(self, encoding: str, ranks: Ranks, kept: np.ndarray) -> None:
        """``kept``: (tokens,) bool, those that have a row; bytes always do."""
        self.encoding, self.ranks, self._kept = encoding, ranks, kept.copy()
        self._kept[ranks.byte_ranks] = True
        rows = np.flatnonzero(self._kept)
        self.vocab_size = len(rows) + 1
        self._id_of = np.zeros(len(ranks.tokens), self.dtype)
        self._id_of[rows] = np.arange(1, self.vocab_size)
        self._pieces = [b"\n", *(ranks.tokens[rank] for rank in rows)]

    @property
    def is_full(self) -> bool:
        """Whether every token has a row."""
        return bool(self._kept.all())

    @classmethod
    def fit(cls, pieces: Iterable[str], option: str) -> Self:
        encoding, _, extent = option.partition(":")
        if extent not in ("", "full"):
            raise UserError(f"--tokenizer tiktoken:{option}: after the name there may be :full, nothing else")
        ranks = fetch(encoding)
        kept = np.full(len(ranks.tokens), extent == "full")
        if not extent:
            for piece in pieces:
                kept[ranks.encode(piece)] = True
        tokenizer = cls(encoding, ranks, kept)
        if not extent:
            tokenizer.note = (
                f"{int(kept.sum()):,} of {encoding}'s {len(kept):,} tokens occur in train; the others are "
                f"spelled by their bytes (tiktoken:{encoding}:full keeps a row for each)"
            )
        return tokenizer

    def encode(self, text: str) -> np.ndarray:
        ranks = self.ranks.encode(text)
        ids = self._id_of[ranks]
        missing = np.flatnonzero(ids == self.boundary_id)
        if not len(missing):
            return ids
        spelled = [np.frombuffer(self.ranks.tokens[rank], np.uint8) for rank in ranks[missing]]
        ids = np.repeat(ids, _lengths(len(ids), missing, spelled))
        ids[ids == self.boundary_id] = self._id_of[self.ranks.byte_ranks[np.concatenate(spelled)]]
        return ids

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        return b"".join([self._pieces[i] for i in np.asarray(ids).tolist()])

    def token_bytes(self) -> np.ndarray:
        return np.array([len(piece) for piece in self._pieces], np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "encoding": self.encoding,
            "pattern": self.ranks.pattern,
            "ranks": self.ranks.to_text(),
            "kept": base64.b64encode(np.packbits(self._kept).tobytes()).decode("ascii"),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        tokens = tokens_from_text(data["ranks"])
        bits = np.frombuffer(base64.b64decode(data["kept"], validate=True), np.uint8)
        if len(bits) != -(-len(tokens) // 8) or not isinstance(data["pattern"], str):
            raise ValueError("rows or pattern are damaged")
        kept = np.unpackbits(bits)[: len(tokens)].astype(bool)
        return cls(str(data["encoding"]), Ranks(data["pattern"], tokens), kept)


def _lengths(total: int, missing: np.ndarray, spelled: list[np.ndarray]) -> np.ndarray:
    """(total,) how many ids each token becomes: one, or one a byte where it is missing."""
    lengths = np.ones(total, np.int64)
    lengths[missing] = [len(part) for part in spelled]
    return lengths
