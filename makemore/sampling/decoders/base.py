"""Inference a token at a time on the CPU: what a model's ``forward`` with a state computes, prepared once
from its weights, in plain numpy.

At these sizes dispatching an operation costs more than computing it, and numpy dispatches in a fifth of
torch's time; its matrix products are as fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import singledispatch

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from makemore.models.base import LanguageModel
from makemore.types import State

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


AT_ONCE = 256
"""Longest sum in one matrix product: BLAS cuts longer ones, and where depends on the number of rows."""
LANES = 16
"""Columns of a matrix product are a multiple of these: BLAS sums those that are over in other ways."""


class Stepper(ABC):
    """Carries on from a state of ``forward``; its logits are those of ``forward`` within 1e-4, and, row by
    row, the same to the bit however many rows there are, if the BLAS keeps to what ``Linear`` asks of it.
    """

    twins = True
    """Whether a single row is to be given twice: of one alone BLAS makes a product of another kind."""
    cached: int | None = None
    """Bytes of state up to which a step is fastest: those that stay in a cache. None: more is faster."""
    can_draw = False
    """Whether ``draw`` can be asked."""

    @abstractmethod
    def load(self, state: State) -> None:
        """Go on from a state in which every row has seen equally many tokens; the state is left as it is."""

    @abstractmethod
    def step(self, ids_B: Ints) -> Floats:
        """Logits (B, V) after one more token a row; the next call may overwrite them."""

    @abstractmethod
    def keep(self, rows_K: Ints) -> None:
        """Go on with some of the rows, in this order; a row may be taken more than once."""

    def draw(self, uniform_B: NDArray[np.float64]) -> Ints:
        """Draw the next tokens (B,) by numbers in [0, 1) and feed them, without working out all of the
        distribution. Which number stands for which token is not as in the vocabulary's order.
        """
        raise NotImplementedError

    def roll(self, keep: int) -> bool:
        """Forget all but the last ``keep`` tokens. False: can't, the context has to be read anew."""
        return False


@singledispatch
def fast_decoder(model: LanguageModel) -> Stepper | None:
    """A fast CPU decoder of a model; None where ``forward`` has to do."""
    return None


class Linear:
    """x @ weight + bias, each row to the bit as it would be among any others."""

    def __init__(self, weight: Floats, bias: Floats | None = None) -> None:
        """``weight``: (in, out); ``bias``: (out,)."""
        self.out = weight.shape[1]
        missing = -self.out % LANES
        weight = np.pad(weight, ((0, 0), (0, missing)))
        edges = list(range(0, len(weight), AT_ONCE))
        self.first, *rest = (np.ascontiguousarray(weight[i : i + AT_ONCE]) for i in edges)
        self.rest = list(zip(edges[1:], rest, strict=True))
        self.bias = None if bias is None else np.pad(bias, (0, missing))
        self.padded = missing > 0

    @classmethod
    def of(cls, layer: nn.Linear) -> Linear:
        return cls(matrix(layer.weight), None if layer.bias is None else array(layer.bias))

    def __call__(self, x: Floats) -> Floats:
        """(B, out), which is the caller's to change."""
        if self.rest:
            y = x[:, :AT_ONCE].dot(self.first)
            for begin, part in self.rest:
                y += x[:, begin : begin + AT_ONCE].dot(part)
        else:
            y = x.dot(self.first)
        if self.bias is not None:
            y += self.bias
        return y[:, : self.out] if self.padded else y


def array(weight: Tensor) -> np.ndarray:
    """A parameter in float32, or a buffer of integers, as a contiguous array."""
    weight = weight.detach().cpu()
    return np.ascontiguousarray((weight.float() if weight.is_floating_point() else weight).numpy())


def matrix(weight: Tensor) -> Floats:
    """A linear layer's weight as (in, out), so that ``x @ matrix`` applies it."""
    return np.ascontiguousarray(array(weight).T)


def sigmoid(x: Floats) -> Floats:
    """In place; as a tanh it can't overflow."""
    x *= 0.5
    np.tanh(x, out=x)
    x *= 0.5
    x += 0.5
    return x
