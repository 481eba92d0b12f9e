"""Published encodings from tiktoken, by name: ``tiktoken:gpt2``."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import tiktoken

from makemore.errors import UserError, unknown_name
from makemore.tokenizers.base import PieceTokenizer
from makemore.tokenizers.ranks import Ranks, parse_tokens


def load_encoding(name: str) -> Ranks:
    """Load an encoding from tiktoken's cache or the network. Raises UserError if unknown or unreachable."""
    if name not in tiktoken.list_encoding_names():
        raise unknown_name("encoding", name, tiktoken.list_encoding_names())
    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:
        reason = type(error).__name__ if isinstance(error, OSError) else str(error).splitlines()[0]
        raise UserError(
            f"--tokenizer tiktoken:{name}: the download failed ({reason}); check the network, or "
            "point TIKTOKEN_CACHE_DIR at a copy of tiktoken's cache"
        ) from None
    # Special tokens and gaps between ranks are dropped: no text encodes to them.
    ranks = sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1])
    return Ranks(encoding._pat_str, [token for token, _ in ranks])


class PublishedTokenizer(PieceTokenizer):
    """Has ids for the bytes and the tokens that occur in train; other tokens are encoded as their bytes.

    ``tiktoken:gpt2:full`` has ids for all tokens.
    """

    name = "tiktoken"

    def __init__(self, encoding: str, ranks: Ranks, has_id: np.ndarray) -> None:
        """``has_id``: (tokens,) bool, which tokens have an id; bytes always do."""
        self.encoding, self.ranks, self._has_id = encoding, ranks, has_id.copy()
        self._has_id[ranks.byte_ranks] = True
        rows = np.flatnonzero(self._has_id)
        self.vocab_size = len(rows) + 1
        self._id_of = np.zeros(len(ranks.tokens), self.dtype)
        self._id_of[rows] = np.arange(1, self.vocab_size)
        self._pieces = [b"\n", *(ranks.tokens[rank] for rank in rows)]

    @property
    def is_full(self) -> bool:
        """Whether every token has an id."""
        return bool(self._has_id.all())

    @classmethod
    def fit(cls, pieces: Iterable[str], option: str) -> Self:
        encoding, _, extent = option.partition(":")
        if extent not in ("", "full"):
            raise UserError(f"--tokenizer 'tiktoken:{option}': only :full may follow the encoding's name")
        ranks = load_encoding(encoding)
        has_id = np.full(len(ranks.tokens), extent == "full")
        if not extent:
            for piece in pieces:
                has_id[ranks.encode(piece)] = True
        tokenizer = cls(encoding, ranks, has_id)
        if not extent:
            tokenizer.note = (
                f"{int(has_id.sum()):,} of {encoding}'s {len(has_id):,} tokens occur in train; the others "
                f"are encoded as bytes (tiktoken:{encoding}:full keeps them all)"
            )
        return tokenizer

    def encode(self, text: str) -> np.ndarray:
        ranks = self.ranks.encode(text)
        ids = self._id_of[ranks]
        missing = np.flatnonzero(ids == self.boundary_id)
        if not len(missing):
            return ids
        as_bytes = [np.frombuffer(self.ranks.tokens[rank], np.uint8) for rank in ranks[missing]]
        lengths = np.ones(len(ids), np.int64)  # of each token, in ids
        lengths[missing] = [len(part) for part in as_bytes]
        ids = np.repeat(ids, lengths)
        ids[ids == self.boundary_id] = self._id_of[self.ranks.byte_ranks[np.concatenate(as_bytes)]]
        return ids

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "encoding": self.encoding,
            "pattern": self.ranks.pattern,
            "ranks": self.ranks.to_text(),
            "kept": base64.b64encode(np.packbits(self._has_id).tobytes()).decode("ascii"),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        tokens = parse_tokens(data["ranks"])
        bits = np.frombuffer(base64.b64decode(data["kept"], validate=True), np.uint8)
        if len(bits) != -(-len(tokens) // 8) or not isinstance(data["pattern"], str):
            raise ValueError("the token mask or the pattern is damaged")
        has_id = np.unpackbits(bits)[: len(tokens)].astype(bool)
        return cls(str(data["encoding"]), Ranks(data["pattern"], tokens), has_id)
