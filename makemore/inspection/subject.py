"""Data classes of an inspection: the subject, its pictures and findings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from makemore.models.base import LanguageModel
from makemore.tokenizers import Tokenizer
from makemore.types import Batch, Split

Kind = Literal["good", "note", "warning"]


@dataclass(frozen=True)
class Finding:
    """A finding in one sentence."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Picture:
    """A figure with a caption and findings about the model."""

    name: str
    """File name without suffix."""
    title: str
    caption: str
    figure: Figure
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class Update:
    """Relative updates of one parameter over the first training steps."""

    name: str
    ratio_S: np.ndarray
    """(S,) float64: std of each step's change over std of the values; NaN if either is zero."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A trained model and its training data; fields are None if the text is no longer available."""

    model_name: str
    model: LanguageModel
    """The best weights, on the CPU, in eval mode."""
    tokenizer: Tokenizer
    tokens_T: Tensor
    """(T,) int64: a short text that starts with the boundary and fits the model's context."""
    records: list[dict[str, Any]]
    """The lines of ``metrics.jsonl``."""
    untrained: LanguageModel | None = None
    """The model before training."""
    train: Split | None = None
    val: Split | None = None
    batch: Batch | None = None
    """A training batch, as the recipe makes it."""
    updates: list[Update] = field(default_factory=list)
    """Updates of the first training steps, replayed."""
