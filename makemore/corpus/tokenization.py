"""Tokenization statistics of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from makemore.corpus.datasets import resolve_input
from makemore.corpus.splits import Corpus, Progress, encode_documents, make_corpus
from makemore.corpus.text import Text, read_source
from makemore.settings import CorpusConfig, parse
from makemore.tokenizers import require_valid_spec

FREQUENT = 20
MAX_TOKEN_BYTES = 64
"""Most tokens are shorter, so this many bytes per token suffice."""


@dataclass(frozen=True, kw_only=True)
class Tokenization:
    """Token statistics over all splits, and the text's first tokens."""

    tokenizer: str
    notes: list[str]
    vocab_size: int
    used: int
    """Number of vocabulary tokens that occur in the text."""
    tokens: int
    chars: int
    bytes: int
    ids: list[int]
    """The first tokens."""
    pieces: list[str]
    """The first tokens as text; invalid UTF-8 bytes as ``\\xNN``."""
    frequent: list[tuple[str, int]]

    def as_dict(self) -> dict[str, Any]:
        ratios = {"tokens_per_char": self.tokens / self.chars, "bytes_per_token": self.bytes / self.tokens}
        return {**vars(self), **ratios, "frequent": dict(self.frequent)}


def _first_tokens(text: Text, corpus: Corpus, length: int) -> np.ndarray:
    """The first ``length`` tokens of the text, in its own order (``lines`` mode shuffles the splits)."""
    head = text.head(MAX_TOKEN_BYTES * length)
    documents = [line for line in head.split("\n") if line.strip()] if corpus.mode == "lines" else [head]
    return encode_documents("head", [documents], mode=corpus.mode, tokenizer=corpus.tokenizer).tokens_N[
        :length
    ]


def tokenize(
    names: Sequence[str],
    spec: str,
    corpus: dict[str, Any] | None = None,
    length: int = 300,
    progress: Progress | None = None,
) -> Tokenization:
    """Tokenize a text as training would. ``corpus``: CorpusConfig fields; ``length``: first tokens to return.

    Raises UserError if the tokenizer is unknown, or the text unreadable or too short.
    """
    require_valid_spec(spec)
    config = parse(CorpusConfig, corpus or {}, "corpus")
    text = read_source(resolve_input(names), config)
    encoded = make_corpus(text, config, spec, progress)
    tokenizer, splits = encoded.tokenizer, encoded.splits.values()
    counts_V = np.zeros(tokenizer.vocab_size, np.int64)
    for split in splits:
        counts_V += np.bincount(split.tokens_N, minlength=tokenizer.vocab_size)
    first = _first_tokens(text, encoded, length).tolist()
    top = np.argsort(-counts_V, kind="stable")[:FREQUENT]
    return Tokenization(
        tokenizer=spec,
        notes=[note for note in (*text.notes, tokenizer.note) if note],
        vocab_size=tokenizer.vocab_size,
        used=int(np.count_nonzero(counts_V)),
        tokens=int(counts_V.sum()),
        chars=sum(split.chars for split in splits),
        bytes=sum(split.bytes for split in splits),
        ids=first,
        pieces=[tokenizer.token_text(token) for token in first],
        frequent=[
            (tokenizer.token_text(int(token)), int(counts_V[token])) for token in top if counts_V[token]
        ],
    )
