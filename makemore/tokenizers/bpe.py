"""Byte-level BPE fitted to the text: ``bpe:512`` for a vocabulary of 512."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from makemore.tokenizers.base import PieceTokenizer, parse_vocab_size, size_note
from makemore.tokenizers.excerpt import excerpt
from makemore.tokenizers.ranks import Ranks, parse_tokens

MIN_VOCAB_SIZE = 257
"""Smallest vocabulary: the boundary and every byte."""
# Words with one preceding character, digits in threes, runs of punctuation, runs of whitespace. Runs
# are bounded because merging is quadratic in a run's length: a megabyte of one letter would hang.
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}{1,32}|\p{N}{1,3}| ?[^\s\p{L}\p{N}]{1,32}|\s{1,32}"


class BPETokenizer(PieceTokenizer):
    """Byte-level BPE tokenizer. Ids: 0 boundary, 1–256 bytes, then merges in learned order."""

    name = "bpe"

    def __init__(self, tokens: Sequence[bytes]) -> None:
        """``tokens``: the bytes of ids 1 onwards. Raises ValueError if they are invalid."""
        self.ranks = Ranks(PATTERN, tokens)
        self._pieces = [b"\n", *self.ranks.tokens]
        self.vocab_size = len(self._pieces)

    @classmethod
    def fit(cls, pieces: Iterable[str], option: str) -> Self:
        size = parse_vocab_size(cls.name, option, MIN_VOCAB_SIZE)
        texts, note = excerpt(pieces)
        tokenizer = cls(train_bpe(texts, size - 1))
        tokenizer.note = size_note(tokenizer.vocab_size, size, note)
        return tokenizer

    def encode(self, text: str) -> np.ndarray:
        return (self.ranks.encode(text) + 1).astype(self.dtype)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "ranks": self.ranks.to_text()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(parse_tokens(data["ranks"]))


def train_bpe(texts: list[str], n_tokens: int) -> list[bytes]:
    """Learn up to ``n_tokens`` tokens: the 256 bytes, then the most frequent merges."""
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Trained

    trained = Trained(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=n_tokens, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    merges = json.loads(trained.to_str())["model"]["merges"]
    byte_offset = byte_decoder()
    merged = [bytes(byte_offset[letter] for letter in left + right) for left, right in merges]
    # Different merges can yield the same token: keep the first.
    return [bytes([b]) for b in range(256)] + list(dict.fromkeys(merged))


def byte_encoder() -> dict[int, str]:
    """The inverse of ``byte_decoder``."""
    return {byte: letter for letter, byte in byte_decoder().items()}


def byte_decoder() -> dict[str, int]:
    """GPT-2's map of printable characters to bytes (Radford et al. 2019): printable Latin-1 maps to
    itself, code points from 256 on to the other bytes, in order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}
