"""Traits of tokens: their kind (letter, digit, space, …) and lower-case form."""

from __future__ import annotations

import numpy as np

from makemore.tokenizers.base import Tokenizer
from makemore.types import TokenKind, TokenTraits


def token_traits(tokenizer: Tokenizer) -> TokenTraits:
    """Kinds of all tokens and their lower-case forms."""
    pieces = [tokenizer.decode_bytes([v]) for v in range(tokenizer.vocab_size)]
    kinds = [int(_kind(piece)) for piece in pieces]
    kinds[tokenizer.boundary_id] = int(TokenKind.BOUNDARY)
    ids = {piece: v for v, piece in reversed(list(enumerate(pieces))) if v != tokenizer.boundary_id}
    folded = [ids.get(_lower(piece), v) for v, piece in enumerate(pieces)]
    return TokenTraits(np.array(kinds, np.uint8), np.array(folded, np.int32))


def _lower(piece: bytes) -> bytes:
    """Lower case; bytes that aren't UTF-8 by themselves are left as they are."""
    try:
        return piece.decode().lower().encode()
    except UnicodeDecodeError:
        return piece


def _kind(piece: bytes) -> TokenKind:
    text = piece.decode(errors="ignore")
    if "\n" in text:
        return TokenKind.NEWLINE
    # Part of a character is most likely a letter of another alphabet; SentencePiece marks words by a space.
    text = text.lstrip(" ") or text
    if not text or (first := text[0]).isalpha():
        return TokenKind.UPPER if text and text[0].isupper() else TokenKind.LETTER
    if first.isspace():
        return TokenKind.SPACE
    return TokenKind.DIGIT if first.isdigit() else TokenKind.PUNCTUATION
