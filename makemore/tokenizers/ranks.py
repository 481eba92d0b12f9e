"""Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) held and run by tiktoken."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import numpy as np
import tiktoken

from makemore.errors import UserError


class Ranks:
    """Tokens in the order in which they are merged, and the pattern that cuts a text beforehand.

    Raises ValueError where a byte has no token, a token comes twice, or the pattern is none.
    """

    def __init__(self, pattern: str, tokens: Sequence[bytes]) -> None:
        self.pattern, self.tokens = pattern, list(tokens)
        ranks = {token: rank for rank, token in enumerate(self.tokens)}
        if len(ranks) != len(self.tokens) or b"" in ranks:
            raise ValueError("a token comes twice, or is empty")
        self.byte_ranks = np.array([ranks.get(bytes([b]), -1) for b in range(256)])
        if (self.byte_ranks < 0).any():
            raise ValueError("some bytes have no token")
        self._encoding = tiktoken.Encoding(
            "makemore", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )

    def encode(self, text: str) -> np.ndarray:
        """(N,) uint32 ranks. No text brings about a special token: there are none."""
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except ValueError as error:  # a pattern that tries too many ways; none of ours does
            raise UserError(f"the tokenizer's pattern can't cut this text: {error}") from None

    def sizes(self) -> np.ndarray:
        """(len(tokens),) int64: bytes of each token."""
        return np.array([len(token) for token in self.tokens], np.int64)

    def to_text(self) -> str:
        """All tokens as one string, for JSON."""
        return " ".join(base64.b64encode(token).decode("ascii") for token in self.tokens)


def tokens_from_text(text: str) -> list[bytes]:
    """What ``Ranks.to_text`` wrote. Raises TypeError or ValueError where it is damaged."""
    if not isinstance(text, str):
        raise TypeError("tokens are a string")
    try:
        return [base64.b64decode(part, validate=True) for part in text.split(" ")]
    except binascii.Error as error:
        raise ValueError(f"tokens: {error}") from None
