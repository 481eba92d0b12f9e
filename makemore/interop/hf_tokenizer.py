"""Convert our tokenizers to Hugging Face's ``tokenizers`` library, with the same ids."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from makemore.errors import UserError
from makemore.tokenizers import Tokenizer
from makemore.tokenizers.bpe import BPETokenizer, byte_decoder
from makemore.tokenizers.byte import ByteTokenizer
from makemore.tokenizers.char import CharTokenizer
from makemore.tokenizers.published import PublishedTokenizer
from makemore.tokenizers.ranks import Ranks

BOUNDARY = "<|endoftext|>"
"""The boundary token; as in GPT-2, it begins a document and ends it."""


def to_hugging_face(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Convert a tokenizer, which then prepends the boundary; UserError if the library can't express it."""
    if isinstance(tokenizer, CharTokenizer):
        converted = _char_level(tokenizer.alphabet)
    elif isinstance(tokenizer, ByteTokenizer):
        converted = _byte_level_bpe([bytes([b]) for b in range(256)], None)
    else:
        ranks = _supported_ranks(tokenizer)
        converted = _byte_level_bpe(ranks.tokens, ranks.pattern)
    converted.add_special_tokens([AddedToken(BOUNDARY, special=True, normalized=False)])
    converted.post_processor = processors.TemplateProcessing(
        single=f"{BOUNDARY} $A", special_tokens=[(BOUNDARY, tokenizer.boundary_id)]
    )
    return converted


def _supported_ranks(tokenizer: Tokenizer) -> Ranks:
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.ranks
    if isinstance(tokenizer, PublishedTokenizer):
        if tokenizer.is_full:
            return tokenizer.ranks
        raise UserError(
            f"this run has a subset of {tokenizer.encoding}'s tokens, and Hugging Face's library can't spell "
            f"the others as bytes; train with --tokenizer tiktoken:{tokenizer.encoding}:full"
        )
    raise UserError(
        f"--format hf doesn't support the tokenizer {tokenizer.name}; train with char, byte, bpe:N or "
        "tiktoken:NAME:full"
    )


def _char_level(alphabet: str) -> tokenizers.Tokenizer:
    # No unknown token: an unknown character is an error, as in our tokenizer.
    ids = {BOUNDARY: 0} | {char: i for i, char in enumerate(alphabet, start=1)}
    converted = tokenizers.Tokenizer(models.WordLevel(ids))
    converted.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    converted.decoder = decoders.Fuse()
    return converted


def _byte_level_bpe(tokens: Sequence[bytes], pattern: str | None) -> tokenizers.Tokenizer:
    """Byte-level BPE over pieces split by ``pattern``; ids from 1, in merge order."""
    letters = {byte: letter for letter, byte in byte_decoder().items()}
    spelled = ["".join(letters[b] for b in token) for token in tokens]
    ids = {BOUNDARY: 0} | {token: i for i, token in enumerate(spelled, start=1)}
    merges = [pair for token in spelled for pair in _merges_of(token, ids)]
    converted = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=True))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    converted.pre_tokenizer = pre_tokenizers.Sequence([*split, to_bytes])
    converted.decoder = decoders.ByteLevel()
    return converted


def _merges_of(token: str, ids: dict[str, int]) -> list[tuple[str, str]]:
    """All pairs of tokens that merge into this one; tiktoken ranks a merge by its result, not its parts."""
    halves = [(token[:i], token[i:]) for i in range(1, len(token))]
    pairs = [(a, b) for a, b in halves if a in ids and b in ids]
    return sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
