"""Inference a token at a time on the CPU: what a model's ``forward`` with a state computes, prepared once
from its weights, in plain numpy.

At these sizes dispatching an operation costs more than computing it, and numpy dispatches in a fifth of
torch's time; its matrix products are as fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from makemore.types import State

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Stepper(ABC):
    """Carries on from a state of ``forward``; its logits are those of ``forward`` within 1e-4."""

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
        """Go on with some of the rows only."""

    def draw(self, uniform_B: NDArray[np.float64]) -> Ints:
        """Draw the next tokens (B,) by numbers in [0, 1) and feed them, without working out all of the
        distribution. Which number stands for which token is not as in the vocabulary's order.
        """
        raise NotImplementedError

    def roll(self, keep: int) -> bool:
        """Forget all but the last ``keep`` tokens. False: can't, the context has to be read anew."""
        return False


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
