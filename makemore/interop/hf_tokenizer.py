"""Our tokenizers as Hugging Face's ``tokenizers`` library has them, id for id."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from makemore.errors import UserError
from makemore.tokenizers import Tokenizer
from makemore.tokenizers.bpe import BPETokenizer, bytes_by_letter
from makemore.tokenizers.byte import ByteTokenizer
from makemore.tokenizers.char import CharTokenizer
from makemore.tokenizers.published import PublishedTokenizer
from makemore.tokenizers.ranks import Ranks

BOUNDARY = "<|endoftext|>"
"""How the boundary is written; as in GPT-2, it stands before a document and ends it."""


def to_hugging_face(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """A tokenizer with the same ids, which puts the boundary before every text.

    Raises UserError for one that the library can't express.
    """
    if isinstance(tokenizer, CharTokenizer):
        made = _characters(tokenizer.alphabet)
    elif isinstance(tokenizer, ByteTokenizer):
        made = _byte_pairs([bytes([b]) for b in range(256)], None)
    else:
        ranks = _ranks(tokenizer)
        made = _byte_pairs(ranks.tokens, ranks.pattern)
    made.add_special_tokens([AddedToken(BOUNDARY, special=True, normalized=False)])
    made.post_processor = processors.TemplateProcessing(
        single=f"{BOUNDARY} $A", special_tokens=[(BOUNDARY, tokenizer.boundary_id)]
    )
    return made


def _ranks(tokenizer: Tokenizer) -> Ranks:
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.ranks
    if isinstance(tokenizer, PublishedTokenizer):
        if tokenizer.is_full:
            return tokenizer.ranks
        raise UserError(
            f"this run keeps a part of {tokenizer.encoding}'s tokens, and Hugging Face's library can't spell "
            f"the others by bytes; train with --tokenizer tiktoken:{tokenizer.encoding}:full"
        )
    raise UserError(
        f"--format hf can't express the tokenizer {tokenizer.name}; train with char, byte, bpe:N or "
        "tiktoken:NAME:full"
    )


def _characters(alphabet: str) -> tokenizers.Tokenizer:
    """Without a token for the unknown: as here, it is an error."""
    ids = {BOUNDARY: 0} | {char: i for i, char in enumerate(alphabet, start=1)}
    made = tokenizers.Tokenizer(models.WordLevel(ids))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return made


def _byte_pairs(tokens: Sequence[bytes], pattern: str | None) -> tokenizers.Tokenizer:
    """Byte-level BPE over pieces that ``pattern`` cuts, ids from 1 on in the order of merging."""
    letters = {byte: letter for letter, byte in bytes_by_letter().items()}
    spelled = ["".join(letters[b] for b in token) for token in tokens]
    ids = {BOUNDARY: 0} | {token: i for i, token in enumerate(spelled, start=1)}
    merges = [pair for token in spelled for pair in _ways_to_merge(token, ids)]
    made = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=True))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cut = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    made.pre_tokenizer = pre_tokenizers.Sequence([*cut, to_bytes])
    made.decoder = decoders.ByteLevel()
    return made


def _ways_to_merge(token: str, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes this one: tiktoken looks at the whole, not at its parts."""
    halves = [(token[:at], token[at:]) for at in range(1, len(token))]
    pairs = [(a, b) for a, b in halves if a in ids and b in ids]
    return sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
