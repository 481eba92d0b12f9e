"""Shared data types. Shape suffixes: B batch, T time (tokens), V vocabulary,
N tokens of a split, D documents, U units of text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
IGNORE_INDEX = -100
"""Target of positions excluded from the loss (padding, context prefix)."""

MIN_COPIED = 0.01
"""Minimum share of a scored text copied from train, in long passages, that is remarked on."""

DocumentEnds = Literal["anywhere", "nonempty", "never"]
"""Where the boundary can come next: ``nonempty``: only after a token, since no document is empty;
``never``: not at all, since the text is one document whose end isn't predicted; ``anywhere``: not known."""

IMPOSSIBLE_LOGIT = -80.0
"""Logit of a boundary token that can't come next: finite, so that no entropy or gradient is NaN."""

State = tuple["Tensor", ...]
"""A model's recurrent state: a flat tuple of tensors, each with batch dimension 0."""


class Batch(NamedTuple):
    """One step's data. ``inputs_BT``, ``targets_BT``: int64; targets may hold IGNORE_INDEX."""

    inputs_BT: Tensor
    targets_BT: Tensor
    continues: bool = False
    """True if every row continues the same row of the previous batch (carried state)."""


class TokenKind(IntEnum):
    """What a token is in a text, by its first character."""

    BOUNDARY, NEWLINE, SPACE, LETTER, UPPER, DIGIT, PUNCTUATION = range(7)


class TokenTraits(NamedTuple):
    """What models that know nothing of tokenizers may use of a vocabulary."""

    kinds_V: np.ndarray
    """uint8: the TokenKind of each token."""
    folded_V: np.ndarray
    """int32: each token in lower case if that is a token, else itself."""


@dataclass(frozen=True)
class Split:
    """One part of a corpus as target tokens, documents concatenated.

    The input of target ``i`` is target ``i - 1``, or the boundary token at the start of a document.
    In ``lines`` mode each document's last target is the boundary (the line's end).
    """

    name: str
    tokens_N: np.ndarray
    """The targets, in order, any integer type."""
    starts_D: np.ndarray
    """int64: index of each document's first target."""
    chars_D: np.ndarray
    """int64: number of characters of each document, line end included."""
    bytes_D: np.ndarray
    """int64: number of UTF-8 bytes of each document, line end included."""
    in_train_D: np.ndarray | None = None
    """bool: the document also occurs verbatim in train (``lines`` mode only)."""
    unknown_chars_D: np.ndarray | None = None
    """int64: number of characters of each document that the tokenizer can't encode; they have no token."""

    @property
    def ends_D(self) -> np.ndarray:
        """int64: one past each document's last target."""
        return np.append(self.starts_D, len(self.tokens_N))[1:]

    @property
    def chars(self) -> int:
        return int(self.chars_D.sum())

    @property
    def bytes(self) -> int:
        return int(self.bytes_D.sum())

    def lone_ends(self, boundary_id: int) -> np.ndarray:
        """Indices (K,) int64 of the ends of lines without a character that the tokenizer knows."""
        starts_D = self.starts_D[self.ends_D - self.starts_D == 1]
        return starts_D[self.tokens_N[starts_D] == boundary_id]

    def inputs_at(self, index: np.ndarray, boundary_id: int) -> np.ndarray:
        """The input tokens of targets ``index`` as int64; any shape; a negative index gives the boundary."""
        previous = self.tokens_N[np.maximum(index - 1, 0)].astype(np.int64)
        return np.where(index > 0, previous, boundary_id)


@dataclass(frozen=True)
class Score:
    """A model's score on a split: every token scored once, nats summed in float64."""

    split: str
    tokens: int
    chars: int
    bytes: int
    nats: float
    unit_nats_U: np.ndarray
    """float64: nats of each unit of text (a document, or a block of bytes)."""
    unit_bytes_U: np.ndarray
    """int64: number of bytes of each unit."""
    ci95_bits_per_byte: tuple[float, float]
    unknown_chars: int = 0
    """Characters outside the tokenizer's alphabet; each adds a fixed number of nats."""
    not_in_train: Score | None = None
    """Score of the documents not in train. None unless some documents are in train and some aren't."""
    all_in_train: bool = False
    """Whether every document is in train, so that the score measures memory only."""
    copied: float = 0.0
    """Share of the tokens in long passages that also occur in train (running text)."""

    @property
    def nll(self) -> float:
        """Nats per token; an unknown character counts as a token."""
        return self.nats / (self.tokens + self.unknown_chars)

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return math.exp(self.nll) if self.nll < 700 else math.inf

    @property
    def nats_per_char(self) -> float:
        return self.nats / self.chars

    @property
    def bits_per_char(self) -> float:
        return self.nats / math.log(2) / self.chars

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    @property
    def ci95_bits_per_char(self) -> tuple[float, float]:
        ratio = self.bytes / self.chars
        return (self.ci95_bits_per_byte[0] * ratio, self.ci95_bits_per_byte[1] * ratio)

    def as_dict(self) -> dict[str, object]:
        """Metrics for ``--json``; ``ci95`` is the confidence interval of bits per byte."""
        counts = ("split", "tokens", "chars", "bytes")
        losses = ("nll", "perplexity", "nats_per_char", "bits_per_char", "bits_per_byte")
        metrics: dict[str, object] = {
            **{name: getattr(self, name) for name in (*counts, *losses)},
            "ci95": list(self.ci95_bits_per_byte),
            "ci95_bits_per_char": list(self.ci95_bits_per_char),
            "unspellable": self.unknown_chars,
            "all_in_train": self.all_in_train,
            "copied": self.copied,
        }
        if self.not_in_train is not None:
            metrics["unseen"] = self.not_in_train.as_dict()
        return metrics
