"""Tokenizer registry; a spec is ``name`` or ``name:option``, such as ``bpe:512``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from makemore.registry import Registry
from makemore.tokenizers.base import Tokenizer

__all__ = ["TOKENIZERS", "Tokenizer", "fit_tokenizer", "tokenizer_from_dict"]

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


def fit_tokenizer(spec: str, pieces: Iterable[str]) -> Tokenizer:
    """Fit the tokenizer of a spec to a text. Raises UserError if the spec is unknown or invalid."""
    name, _, option = spec.partition(":")
    return TOKENIZERS.get(name).fit(pieces, option)


def tokenizer_from_dict(data: dict[str, Any]) -> Tokenizer:
    """Load a saved tokenizer. Raises KeyError, TypeError or ValueError if it is damaged."""
    return TOKENIZERS.get(str(data["name"])).from_dict(data)
