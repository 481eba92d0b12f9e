"""Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019), using tiktoken."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
import regex  # type: ignore[import-untyped]
import tiktoken

from makemore.errors import UserError

PROBE = " \t\r\n aA1ß.,'s漢\u0301\U0001f600\0 x"
"""Text with characters of many kinds."""


class Ranks:
    """BPE tokens in merge order, and the regular expression that splits a text before merging.

    Raises ValueError if a byte has no token, a token is empty or repeated, or the pattern is invalid or
    matches the empty string, which tiktoken can't encode.
    """

    def __init__(self, pattern: str, tokens: Sequence[bytes]) -> None:
        self.pattern, self.tokens = pattern, list(tokens)
        ranks = {token: rank for rank, token in enumerate(self.tokens)}
        if len(ranks) != len(self.tokens) or b"" in ranks:
            raise ValueError("a token is repeated or empty")
        self.byte_ranks = np.array([ranks.get(bytes([b]), -1) for b in range(256)])
        if (self.byte_ranks < 0).any():
            raise ValueError("some bytes have no token")
        try:
            is_empty = any(not match[0] for text in ("", PROBE) for match in regex.finditer(pattern, text))
        except regex.error as error:
            raise ValueError(f"pattern: {error}") from None
        if is_empty:
            raise ValueError("the pattern matches the empty string")
        self._sizes = np.array([len(token) for token in self.tokens])
        self._encoding = tiktoken.Encoding(
            "makemore", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )

    def encode(self, text: str) -> np.ndarray:
        """(N,) uint32 ranks of a text; there are no special tokens. Raises UserError if the pattern fails."""
        try:
            ranks = self._encoding.encode_to_numpy(text, disallowed_special=())
            reason = "" if self._sizes[ranks].sum() == len(text.encode()) else "its pattern skips characters"
        except ValueError as error:  # too much backtracking; makemore's own patterns never do that
            reason = str(error)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # a panic in tiktoken's Rust code
                raise
            reason = str(error)
        if reason:
            raise UserError(f"the tokenizer fails on this text ({reason}); use another tokenizer")
        return ranks

    def to_text(self) -> str:
        """All tokens as one string, for JSON."""
        return " ".join(base64.b64encode(token).decode("ascii") for token in self.tokens)


def parse_tokens(text: str) -> list[bytes]:
    """Parse the result of ``Ranks.to_text``. Raises TypeError or ValueError if it is damaged."""
    if not isinstance(text, str):
        raise TypeError("tokens must be a string")
    return [base64.b64decode(part, validate=True) for part in text.split(" ")]
