"""What is inspected, and what a picture of it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from makemore.models.base import LanguageModel
from makemore.tokenizers import Tokenizer
from makemore.types import Batch, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["good", "note", "warning"]


@dataclass(frozen=True)
class Verdict:
    """A sentence on what was found."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Picture:
    """A figure, how to read it, and what it says of this model."""

    name: str
    """File name, without its suffix."""
    title: str
    caption: str
    figure: Figure
    verdicts: list[Verdict] = field(default_factory=list)


@dataclass(frozen=True)
class Update:
    """One parameter over the first steps of training."""

    name: str
    ratio_S: np.ndarray
    """(S,) float64: standard deviation of each step's change over that of the values; NaN of zeros."""


@dataclass(frozen=True)
class Subject:
    """A trained model with what is known of its training; None where the text is no longer at hand."""

    name: str
    rung: str
    model: LanguageModel
    """The best weights, on the CPU, in eval mode."""
    tokenizer: Tokenizer
    tokens_T: Tensor
    """(T,) int64: a text to look at closely, the boundary first, within the model's context."""
    records: list[dict[str, Any]]
    """The lines of ``metrics.jsonl``."""
    stopped_early: bool = False
    fresh: LanguageModel | None = None
    """The model before its first step."""
    train: Split | None = None
    val: Split | None = None
    batch: Batch | None = None
    """Of the training split, as the recipe makes them."""
    updates: list[Update] = field(default_factory=list)
    """Of the first steps of training, taken again."""

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size
