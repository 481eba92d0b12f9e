"""Arrays of integers in as few bytes as possible."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from makemore.types import Ints

Tokens = NDArray[np.integer[Any]]
Bytes = NDArray[np.uint8]
LARGE = 255
"""Marks the place of a value that doesn't fit in a byte."""


def token_dtype(vocab_size: int) -> type[np.integer[Any]]:
    """The smallest dtype that PyTorch also has for the tokens of a vocabulary."""
    if vocab_size <= 1 << 8:
        return np.uint8
    return np.int16 if vocab_size <= 1 << 15 else np.int32


@dataclass(frozen=True, eq=False)
class PackedCounts:
    """Non-negative integers, most of them small: a byte each; those of 255 and more are listed apart."""

    bytes_G: Bytes
    """Each value, at most ``LARGE``."""
    large: Ints
    """The values that are ``LARGE`` in ``bytes_G``, in order."""

    @classmethod
    def pack(cls, values_G: Tokens) -> Self:
        large = values_G[values_G >= LARGE].astype(np.int64)
        return cls(np.minimum(values_G, LARGE).astype(np.uint8), large)

    @classmethod
    def concatenate(cls, parts: list[Self]) -> Self:
        return cls(np.concatenate([p.bytes_G for p in parts]), np.concatenate([p.large for p in parts]))

    def __len__(self) -> int:
        return len(self.bytes_G)

    def cut(self, size: int) -> Self:
        """The first ``size`` values."""
        return type(self)(self.bytes_G[:size].copy(), self.large[: self._n_large(size)])

    def unpack(self, part: slice) -> Ints:
        """The values of a slice, which has a start and a stop."""
        values_G = self.bytes_G[part].astype(np.int64)
        large = slice(self._n_large(part.start), self._n_large(part.stop))
        values_G[self._large_positions[large] - part.start] = self.large[large]
        return values_G

    def validate(self) -> None:
        """Raise ValueError unless each large value has its place."""
        if self.bytes_G.ndim != 1 or self.large.shape != (self._n_large(len(self)),):
            raise ValueError(f"{self._n_large(len(self))} large counts, found {self.large.shape}")
        if self.large.size and self.large.min() < LARGE:
            raise ValueError("large counts that aren't large")

    @cached_property
    def _large_positions(self) -> Ints:
        return np.flatnonzero(self.bytes_G == LARGE)

    def _n_large(self, size: int) -> int:
        return int(self._large_positions.searchsorted(size))
