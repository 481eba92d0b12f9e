"""Tokenizer registry; a spec is ``name`` or ``name:option``, such as ``bpe:512``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from makemore.errors import UserError
from makemore.registry import Registry
from makemore.tokenizers.base import Tokenizer

__all__ = ["TOKENIZERS", "Tokenizer", "fit_tokenizer", "require_valid_spec", "tokenizer_from_dict"]

TOKENIZERS: Registry[type[Tokenizer]] = Registry(
    "tokenizer",
    {
        "char": "makemore.tokenizers.char:CharTokenizer",
        "byte": "makemore.tokenizers.byte:ByteTokenizer",
        "tiktoken": "makemore.tokenizers.published:PublishedTokenizer",
        "bpe": "makemore.tokenizers.bpe:BPETokenizer",
        "spm": "makemore.tokenizers.spm:SentencePieceBPE",
        "spm-unigram": "makemore.tokenizers.spm:SentencePieceUnigram",
    },
)


def require_valid_spec(spec: str) -> None:
    """Raise UserError if a spec names no tokenizer, or has an option that its tokenizer doesn't take."""
    name, colon, _ = spec.partition(":")
    if colon and not TOKENIZERS.get(name).has_option:
        raise UserError(f"--tokenizer {spec!r}: {name} takes no option; use {name}")
    TOKENIZERS.path(name)


def fit_tokenizer(spec: str, pieces: Iterable[str]) -> Tokenizer:
    """Fit the tokenizer of a spec to a text. Raises UserError if the spec is unknown or invalid."""
    require_valid_spec(spec)
    name, _, option = spec.partition(":")
    return TOKENIZERS.get(name).fit(pieces, option)


def tokenizer_from_dict(data: dict[str, Any]) -> Tokenizer:
    """Load a saved tokenizer. Raises KeyError, TypeError or ValueError if it is damaged."""
    return TOKENIZERS.get(str(data["name"])).from_dict(data)
