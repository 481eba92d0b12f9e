"""CPU inference one token at a time: a model's stateful ``forward`` in numpy or C, with prepared weights.

At these sizes dispatching an operation costs more than computing it. Numpy dispatches five times faster than
torch, and its matrix products are as fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import singledispatch

import numpy as np
from torch import Tensor, nn

from makemore.models.base import LanguageModel
from makemore.types import IMPOSSIBLE_LOGIT, Floats, Floats32, Ints, State

MAX_SUM_LENGTH = 256
"""Longest sum in one matrix product: BLAS splits longer ones, depending on the number of rows."""
COLUMN_MULTIPLE = 16
"""Matrix products are padded to a multiple of this many columns: BLAS sums the rest in another order."""


class StepDecoder(ABC):
    """Decodes one more token per row at a time."""

    supports_sampling = False
    """Whether ``sample`` is supported."""

    @abstractmethod
    def step(self, ids_B: Ints) -> Floats32:
        """Logits (B, V) after one more token per row; the next call may overwrite them."""

    @abstractmethod
    def select_rows(self, rows_K: Ints) -> None:
        """Select rows, in this order; a row may be repeated."""

    def sample(self, uniform_B: Floats) -> Ints:
        """Sample the next tokens (B,) by uniform numbers in [0, 1) and feed them, without computing the whole
        distribution. Unlike in ``sample_tokens``, the numbers don't map to tokens in vocabulary order."""
        raise NotImplementedError


class FastDecoder(StepDecoder):
    """Continues from a state of ``forward``. Logits match those of ``forward`` within 1e-4, except that no
    boundary is ruled out, and each row is bit-identical whatever the number of rows, if the BLAS behaves as
    ``Linear`` assumes.
    """

    duplicates_single_row = True
    """Whether a single row must be duplicated, since BLAS multiplies one row alone differently."""
    cache_bytes: int | None = None
    """Bytes of state that stay in a cache, where a step is fastest; None if more rows are always faster."""

    @abstractmethod
    def load(self, state: State) -> None:
        """Continue from a state in which all rows have seen equally many tokens; it isn't modified."""

    def drop_oldest(self, n_keep: int) -> bool:
        """Drop all but the last ``n_keep`` tokens. Returns False if the context must be processed again."""
        return False


class EndExclusion:
    """``LanguageModel.exclude_ends`` for logits (B, V) in numpy, in place."""

    def __init__(self, model: LanguageModel) -> None:
        self.document_ends, self.boundary_id = model.document_ends, model.boundary_id

    def __call__(self, logits_BV: Floats32, ids_B: Ints) -> Floats32:
        if self.document_ends == "never":
            logits_BV[:, self.boundary_id] = IMPOSSIBLE_LOGIT
        elif self.document_ends == "nonempty":
            logits_BV[ids_B == self.boundary_id, self.boundary_id] = IMPOSSIBLE_LOGIT
        return logits_BV


@singledispatch
def fast_decoder(model: LanguageModel) -> FastDecoder | None:
    """A model's fast CPU decoder, or None if there is none; the caller then uses ``forward``."""
    return None


class Linear:
    """x @ weight + bias, with each row bit-identical whatever the other rows."""

    def __init__(self, weight: Floats32, bias: Floats32 | None = None) -> None:
        """``weight``: (in, out); ``bias``: (out,)."""
        self.out = weight.shape[1]
        padding = -self.out % COLUMN_MULTIPLE
        weight = np.pad(weight, ((0, 0), (0, padding)))
        begins = list(range(0, len(weight), MAX_SUM_LENGTH))
        self.first, *rest = (np.ascontiguousarray(weight[i : i + MAX_SUM_LENGTH]) for i in begins)
        self.rest = list(zip(begins[1:], rest, strict=True))
        self.bias = None if bias is None else np.pad(bias, (0, padding))
        self.padded = padding > 0

    @classmethod
    def from_layer(cls, layer: nn.Linear) -> Linear:
        return cls(to_matrix(layer.weight), None if layer.bias is None else to_array(layer.bias))

    def __call__(self, x: Floats32) -> Floats32:
        """(B, out), which the caller may modify."""
        if self.rest:
            y = x[:, :MAX_SUM_LENGTH].dot(self.first)
            for begin, part in self.rest:
                y += x[:, begin : begin + MAX_SUM_LENGTH].dot(part)
        else:
            y = x.dot(self.first)
        if self.bias is not None:
            y += self.bias
        return y[:, : self.out] if self.padded else y


def to_array(weight: Tensor) -> np.ndarray:
    """A parameter as float32, or an integer buffer, as a contiguous array."""
    weight = weight.detach().cpu()
    return np.ascontiguousarray((weight.float() if weight.is_floating_point() else weight).numpy())


def to_matrix(weight: Tensor) -> Floats32:
    """A linear layer's weight as (in, out), for ``x @ matrix``."""
    return np.ascontiguousarray(to_array(weight).T)


def sigmoid(x: Floats32) -> Floats32:
    """In-place sigmoid, computed with tanh, which can't overflow."""
    x *= 0.5
    np.tanh(x, out=x)
    x *= 0.5
    x += 0.5
    return x
