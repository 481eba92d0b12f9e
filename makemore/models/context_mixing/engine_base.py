"""The interface of the C code and of its Python form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from makemore.types import Floats, Floats32, Ints


class Rates(NamedTuple):
    """Learning rates of the mixers and of the final correction; all 0: only counts are learned."""

    mixer: float = 0.0
    correction: float = 0.0


class Engine(ABC):
    """Reads tokens, and predicts what follows them."""

    @abstractmethod
    def read(
        self,
        position: Ints,
        inputs_N: Ints,
        targets_N: Ints,
        rates: Rates | None,
        counts: bool,
        logits_NV: Floats32 | None = None,
    ) -> Floats:
        """Nats (N,) of targets given inputs, in order: 0 for targets below 0, infinite if impossible.

        Args:
            position: (POSITION_SIZE,), updated.
            rates: the weights learn from each target at these rates; None: they are frozen.
            counts: each target is counted, once it has been predicted.
            logits_NV: receives the log-probabilities of all tokens, before the target is learned; unchanged
                where the target is below 0 or impossible.
        """

    @abstractmethod
    def distributions(self, tokens_BT: Ints, positions_BP: Ints) -> Floats32:
        """Log-probabilities (B, T, V) of the token after each; positions are updated."""

    @abstractmethod
    def sample(self, positions_BP: Ints, uniform_B: Floats) -> Ints:
        """Sample the next token of each row by a number in [0, 1), and update positions."""
