"""Choosing the next token: distributions, sampling and random numbers.

Uses numpy in float64 on every device: a row takes a few microseconds, and results are the same everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from makemore.errors import UserError
from makemore.types import Floats, Ints

NOISE_BLOCK = 256
MIN_TEMPERATURE = 1e-100
"""Lower temperatures are greedy: logits divided by them could overflow."""


@dataclass(frozen=True)
class SampleParams:
    """Sampling settings. Raises UserError for values out of range."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"--temperature {self.temperature:g}: must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"--top-k {self.top_k}: must be 1 or more")
        for flag, value in (("--top-p", self.top_p), ("--min-p", self.min_p)):
            if value is not None and not 0 < value <= 1:
                raise UserError(f"{flag} {value:g}: must be above 0 and at most 1")

    @property
    def is_greedy(self) -> bool:
        return self.greedy or self.temperature < MIN_TEMPERATURE

    @property
    def is_unmodified(self) -> bool:
        """Whether tokens are sampled from the model's unmodified distribution."""
        return not self.greedy and self.temperature == 1 and not (self.top_k or self.top_p or self.min_p)


def distribution(logits_BV: np.ndarray, params: SampleParams) -> Floats:
    """Probabilities to sample tokens from, (B, V) float64.

    Applies temperature, then top-k (Fan et al. 2018), min-p (Nguyen et al. 2024) and top-p (Holtzman et al.
    2020), each to the tokens that the previous filter left.
    """
    if params.is_greedy:
        probs_BV = np.zeros(logits_BV.shape)
        np.put_along_axis(probs_BV, logits_BV.argmax(axis=-1)[:, None], 1.0, axis=-1)
        return probs_BV
    weights_BV = _unnormalised(logits_BV, params)
    weights_BV /= weights_BV.sum(axis=-1, keepdims=True)
    return weights_BV


def entropy_bits(p_V: Floats) -> float:
    """Entropy of a distribution, in bits."""
    nonzero = p_V[p_V > 0]
    return float(-(nonzero * np.log2(nonzero)).sum()) + 0.0  # not -0.0


def _unnormalised(logits_BV: np.ndarray, params: SampleParams) -> Floats:
    """Unnormalised probabilities; the maximum of each row is 1."""
    z_BV = logits_BV.astype(np.float64)
    if params.temperature != 1:
        z_BV /= params.temperature
    if params.top_k is not None and params.top_k < z_BV.shape[1]:
        threshold_B1 = np.partition(z_BV, -params.top_k, axis=-1)[:, -params.top_k, None]
        z_BV[z_BV < threshold_B1] = -math.inf
    z_BV -= np.maximum.reduce(z_BV, axis=-1, keepdims=True)
    weights_BV = np.exp(z_BV, out=z_BV)
    if params.min_p is not None:
        weights_BV[weights_BV < params.min_p] = 0.0
    if params.top_p is not None and params.top_p < 1:
        order = np.argsort(-weights_BV, axis=-1, kind="stable")
        ordered = np.take_along_axis(weights_BV, order, axis=-1)
        sums = ordered.cumsum(axis=-1)
        ordered[sums - ordered >= params.top_p * sums[:, -1:]] = 0.0
        np.put_along_axis(weights_BV, order, ordered, axis=-1)
    return weights_BV


def sample_tokens(logits_BV: np.ndarray, params: SampleParams, uniform_B: Floats) -> Ints:
    """Sample tokens (B,) by inverting each row's cumulative distribution at ``uniform_B`` in [0, 1).

    A row's token depends only on its own logits and random number, not on the rest of the batch.
    """
    if params.is_greedy:
        return logits_BV.argmax(axis=-1)
    sums_BV = np.add.accumulate(_unnormalised(logits_BV, params), axis=-1)
    # uniform_B is a multiple of 2**-53 below 1, so its product with the total stays below the total.
    return np.add.reduce(sums_BV <= uniform_B[:, None] * sums_BV[:, -1:], axis=-1)


class RandomStreams:
    """Uniform random numbers (B,) per step, from a counter-based stream per sample (Philox, Salmon et al.
    2011), so sample ``i`` is the same in any batch."""

    def __init__(self, seed: int, samples: range) -> None:
        keys = [np.array([seed % 2**64, i], dtype=np.uint64) for i in samples]
        self._streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        self._block_TB: Floats = np.zeros((0, len(keys)))
        self._next_row = 0

    def next(self) -> Floats:
        if self._next_row >= len(self._block_TB):
            blocks = [stream.random(NOISE_BLOCK) for stream in self._streams]
            self._block_TB = np.ascontiguousarray(np.stack(blocks, axis=1))
            self._next_row = 0
        self._next_row += 1
        return self._block_TB[self._next_row - 1]

    def select_rows(self, rows_K: Ints) -> None:
        """Keep only these rows."""
        self._streams = [self._streams[i] for i in rows_K]
        self._block_TB = self._block_TB[:, rows_K]
