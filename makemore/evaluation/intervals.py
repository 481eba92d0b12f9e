"""How far chance might have moved a score: intervals that know that neighbours are alike.

A score is a mean over units of text: documents, or blocks of 512 bytes of a running text, in the order they
stand. They are the same for every tokenizer, so that two models can be compared unit by unit. Neighbours
resemble each other, as scenes of a play do; drawing them again one by one (a plain bootstrap) would take them
for strangers and come out too narrow. So the error of the mean is read off its slowest cosines, those in
which all that lasts longer than a few units shows, and Student's t with as many degrees of freedom allows for
there being few of them: the equal-weighted cosine estimator (Müller 2007, "A theory of robust long-run
variance estimation"). Of U units 0.3 U^(2/3) are read, a quarter fewer than Lazarus, Lewis, Stock & Watson
(2018, "HAR inference: recommendations for practice") recommend: a little wider, and sound for longer scenes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK_BYTES = 512
COSINES = 0.3
"""Times U^(2/3): how many are read for U units."""
LEAST_COSINES = 3
"""Fewer make intervals too wide to say anything."""
LEVEL = 0.95


@dataclass(frozen=True)
class Judgement:
    """A model's bits per byte, the mean over its seeds, beside the best model's."""

    bits_per_byte: float
    ci95: tuple[float, float]
    difference: float
    """To the best model's, in bits per byte; 0 for the best itself."""
    difference_ci95: tuple[float, float]

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval of the difference leaves out 0."""
        return self.difference_ci95[0] > 0


@dataclass(frozen=True)
class Error:
    """Standard error of a mean, and how many squares it was found from."""

    variance: float
    freedom: float

    def half_width(self) -> float:
        """Of the 95 % interval; endless where nothing is known."""
        return math.sqrt(self.variance) * student_t(self.freedom)

    def __add__(self, other: Error) -> Error:
        """Of a sum of independent parts (Welch 1947, Satterthwaite 1946)."""
        variance = self.variance + other.variance
        if math.isinf(variance):
            return UNKNOWN
        parts = sum(one.variance**2 / one.freedom for one in (self, other) if one.variance)
        return Error(variance, variance**2 / parts if parts else math.inf)


NO_ERROR = Error(0.0, math.inf)
UNKNOWN = Error(math.inf, 1.0)


def block_totals(nats_N: np.ndarray, sizes_N: np.ndarray, total_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nats and bytes (U,) of each block of a text that tokens of ``sizes_N`` bytes spell.

    A token that reaches into the next block is shared out by its bytes. Where tokens spell less than
    ``total_bytes``, characters were left out; they are taken to lie evenly.
    """
    ends_N = np.cumsum(sizes_N) * (total_bytes / int(sizes_N.sum()))
    edges = np.append(np.arange(0, total_bytes, BLOCK_BYTES), total_bytes)
    possible_N = np.isfinite(nats_N)
    nats_so_far = np.cumsum(np.where(possible_N, nats_N, 0.0))
    nats_U = np.diff(np.interp(edges, np.append(0.0, ends_N), np.append(0.0, nats_so_far)))
    impossible = (ends_N[~possible_N] - 1e-6).astype(np.int64) // BLOCK_BYTES
    nats_U[impossible] = math.inf
    return nats_U, np.diff(edges)


def student_t(freedom: float) -> float:
    """Student's t: 95 % lie within plus and minus this.

    Under t = √ν tan θ its density is cos θ to the power ν - 1, which is summed here.
    """
    freedom = min(max(freedom, 1.0), 1e6)
    furthest = min(math.pi / 2, 40 / math.sqrt(freedom))  # nothing lies beyond
    angles = np.linspace(0, furthest, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    mass = np.append(0.0, np.cumsum((density[1:] + density[:-1]) / 2))
    return math.sqrt(freedom) * math.tan(np.interp(LEVEL, mass / mass[-1], angles))


def text_error(nats_U: np.ndarray, bytes_U: np.ndarray) -> Error:
    """Of total nats over total bytes, in bits per byte, over other texts of the kind."""
    units = len(nats_U)
    if units < 2:
        return UNKNOWN
    # What each unit costs beyond what its bytes cost on average: the ratio, made linear.
    surplus_U = nats_U - nats_U.sum() / bytes_U.sum() * bytes_U
    freedom = min(units - 1, max(LEAST_COSINES, round(COSINES * units ** (2 / 3))))
    # The cosine transform (type II), by a Fourier transform of the series and its mirror image.
    waves = np.fft.rfft(np.concatenate([surplus_U, surplus_U[::-1]]))[1 : freedom + 1]
    turns = np.exp(-0.5j * math.pi * np.arange(1, freedom + 1) / units)
    cosines = (waves * turns).real / math.sqrt(2)  # each with the variance of the sum
    return Error(float(np.mean(cosines**2)) / (float(bytes_U.sum()) * math.log(2)) ** 2, freedom)


def text_interval(nats_U: np.ndarray, bytes_U: np.ndarray) -> tuple[float, float]:
    """95 % interval of total nats over total bytes, in bits per byte; 0 to infinity for a single unit."""
    if not np.isfinite(nats_U).all():  # counts without smoothing: something was held impossible
        return math.inf, math.inf
    low, high = _around(_bits_per_byte(nats_U, bytes_U), text_error(nats_U, bytes_U))
    return max(low, 0.0), high


def paired_difference(
    nats_U: np.ndarray, other_U: np.ndarray, bytes_U: np.ndarray
) -> tuple[float, tuple[float, float]]:
    """How many bits per byte more than another scoring of the same units, and the 95 % interval of that."""
    difference = _bits_per_byte(nats_U - other_U, bytes_U)
    return difference, _around(difference, text_error(nats_U - other_U, bytes_U))


def judge(models: Sequence[np.ndarray], bytes_U: np.ndarray) -> list[Judgement]:
    """Models, each by the nats (S, U) of its S seeds on the same units, beside the best of them.

    Where a model has several seeds, the mean over all seeds there are is meant, and its uncertainty is added;
    an interval of one seed says nothing of what another would have done.
    """
    # A seed that holds something impossible makes its model's mean endless.
    means = [seeds_SU.mean(axis=0) for seeds_SU in models]
    points = [_bits_per_byte(nats_U, bytes_U) for nats_U in means]
    luck = [_seed_error(seeds_SU, bytes_U) for seeds_SU in models]
    best = int(np.argmin(points))
    judged = []
    for i, (point, nats_U) in enumerate(zip(points, means, strict=True)):
        if not math.isfinite(point):
            endless = (math.inf, math.inf)
            judged.append(Judgement(point, endless, math.inf, endless))
            continue
        low, high = _around(point, text_error(nats_U, bytes_U) + luck[i])
        gap = point - points[best]
        error = text_error(nats_U - means[best], bytes_U) + luck[i] + luck[best]
        bounds = (0.0, 0.0) if i == best else _around(gap, error)
        judged.append(Judgement(point, (max(low, 0.0), high), gap, bounds))
    return judged


def _seed_error(nats_SU: np.ndarray, bytes_U: np.ndarray) -> Error:
    """Of a mean over seeds, over other seeds."""
    bits_S = nats_SU.sum(axis=1) / bytes_U.sum() / math.log(2)
    seeds = len(bits_S)
    if seeds == 1 or not np.isfinite(bits_S).all():
        return NO_ERROR
    return Error(float(bits_S.var(ddof=1)) / seeds, seeds - 1)


def _bits_per_byte(nats_U: np.ndarray, bytes_U: np.ndarray) -> float:
    return float(nats_U.sum() / bytes_U.sum() / math.log(2))


def _around(middle: float, error: Error) -> tuple[float, float]:
    half = error.half_width()
    return middle - half, middle + half
