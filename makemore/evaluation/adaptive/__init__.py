"""Adaptive scores: a model learns from each part of a text once it has predicted it.

A frozen score, in contrast, uses only what was learned in training.
"""

from __future__ import annotations

import numpy as np

from makemore.evaluation.adaptive.base import Reader
from makemore.evaluation.adaptive.dynamic import DynamicSettings
from makemore.evaluation.adaptive.readers import make_reader
from makemore.models.base import LanguageModel
from makemore.types import Ints, Split

__all__ = ["DynamicSettings", "Reader", "learned", "make_reader", "prompt_split"]


def learned(reader: Reader, prompt_ids: Ints) -> LanguageModel:
    """A copy of a reader's model that has learned from the tokens (T,) of a prompt, as in an adaptive score.

    Raises UserError if the model diverges.
    """
    split = prompt_split(prompt_ids, reader.model.boundary_id)
    return reader.learn(split) if len(split.tokens_N) else reader.model


def prompt_split(prompt_ids: Ints, boundary_id: int) -> Split:
    """The tokens of a prompt as one document; a boundary at its start isn't a target."""
    begins = len(prompt_ids) > 0 and prompt_ids[0] == boundary_id
    tokens_N, zero_D = prompt_ids[int(begins) :], np.zeros(1, np.int64)
    return Split("prompt", tokens_N, zero_D, chars_D=zero_D, bytes_D=zero_D)
