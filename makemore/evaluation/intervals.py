"""Confidence intervals for scores that allow for correlation between neighbouring text.

A score is a mean over units of text in order: documents, or blocks of 512 bytes of running text. The units
are the same for every tokenizer, so models can be compared unit by unit. Neighbouring units are correlated,
and a plain bootstrap, which treats them as independent, gives intervals that are too narrow. Instead we
estimate the long-run variance from low-frequency cosine coefficients, with one degree of freedom of Student's
t each: the equal-weighted cosine estimator (Müller 2007, "A theory of robust long-run variance estimation").
U units get 0.3 U^(2/3) coefficients, a quarter fewer than Lazarus, Lewis, Stock & Watson (2018, "HAR
inference: recommendations for practice") recommend: slightly wider, and valid for longer-range correlation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK_BYTES = 512
COSINE_FACTOR = 0.3
"""U units use this times U^(2/3) cosine coefficients."""
MIN_COSINES = 3
"""Minimum number of coefficients; fewer make the intervals uselessly wide."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedResult:
    """A model's bits per byte, averaged over its seeds, compared with the best model's."""

    bits_per_byte: float
    ci95: tuple[float, float]
    difference: float
    """Difference from the best model, in bits per byte; 0 for the best model itself."""
    difference_ci95: tuple[float, float]

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        return self.difference_ci95[0] > 0


@dataclass(frozen=True)
class MeanError:
    """Variance of a mean, and the degrees of freedom of its estimate."""

    variance: float
    dof: float

    def half_width(self) -> float:
        """Half-width of the 95 % interval; infinite if the variance is unknown."""
        return math.sqrt(self.variance) * student_t_quantile(self.dof)

    def __add__(self, other: MeanError) -> MeanError:
        """Error of a sum of independent terms (Welch 1947, Satterthwaite 1946)."""
        variance = self.variance + other.variance
        if math.isinf(variance):
            return UNKNOWN
        squares = sum(term.variance**2 / term.dof for term in (self, other) if term.variance)
        return MeanError(variance, variance**2 / squares if squares else math.inf)


NO_ERROR = MeanError(0.0, math.inf)
UNKNOWN = MeanError(math.inf, 1.0)


def block_totals(nats_N: np.ndarray, sizes_N: np.ndarray, total_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nats and bytes (U,) of each block of a text whose tokens have ``sizes_N`` bytes.

    A token that crosses into the next block is split by its bytes. If the tokens have fewer than
    ``total_bytes`` bytes, characters were left out; they are assumed to be spread evenly.
    """
    ends_N = np.cumsum(sizes_N) * (total_bytes / int(sizes_N.sum()))
    edges = np.append(np.arange(0, total_bytes, BLOCK_BYTES), total_bytes)
    possible_N = np.isfinite(nats_N)
    nats_so_far = np.cumsum(np.where(possible_N, nats_N, 0.0))
    nats_U = np.diff(np.interp(edges, np.append(0.0, ends_N), np.append(0.0, nats_so_far)))
    impossible = (ends_N[~possible_N] - 1e-6).astype(np.int64) // BLOCK_BYTES
    nats_U[impossible] = math.inf
    return nats_U, np.diff(edges)


def student_t_quantile(dof: float) -> float:
    """Two-sided 95 % quantile of Student's t.

    With t = √ν tan θ, the density is cos θ to the power ν - 1, which we integrate numerically.
    """
    dof = min(max(dof, 1.0), 1e6)
    max_angle = min(math.pi / 2, 40 / math.sqrt(dof))  # the density beyond is negligible
    angles = np.linspace(0, max_angle, 20_001)
    density = np.cos(angles) ** (dof - 1)
    mass = np.append(0.0, np.cumsum((density[1:] + density[:-1]) / 2))
    return math.sqrt(dof) * math.tan(np.interp(CONFIDENCE, mass / mass[-1], angles))


def text_error(nats_U: np.ndarray, bytes_U: np.ndarray) -> MeanError:
    """Sampling error of total nats over total bytes, in bits per byte."""
    units = len(nats_U)
    if units < 2:
        return UNKNOWN
    # Linearise the ratio: each unit's nats minus the average nats of as many bytes.
    residual_U = nats_U - nats_U.sum() / bytes_U.sum() * bytes_U
    dof = min(units - 1, max(MIN_COSINES, round(COSINE_FACTOR * units ** (2 / 3))))
    # DCT-II, by an FFT of the series followed by its mirror image.
    fourier = np.fft.rfft(np.concatenate([residual_U, residual_U[::-1]]))[1 : dof + 1]
    phases = np.exp(-0.5j * math.pi * np.arange(1, dof + 1) / units)
    cosines = (fourier * phases).real / math.sqrt(2)  # each has the variance of the sum
    return MeanError(float(np.mean(cosines**2)) / (float(bytes_U.sum()) * math.log(2)) ** 2, dof)


def text_interval(nats_U: np.ndarray, bytes_U: np.ndarray) -> tuple[float, float]:
    """95 % interval of total nats over total bytes, in bits per byte; 0 to infinity for a single unit."""
    if not np.isfinite(nats_U).all():  # unsmoothed counts gave a token probability 0
        return math.inf, math.inf
    low, high = _interval_around(_bits_per_byte(nats_U, bytes_U), text_error(nats_U, bytes_U))
    return max(low, 0.0), high


def paired_difference(
    nats_U: np.ndarray, other_U: np.ndarray, bytes_U: np.ndarray
) -> tuple[float, tuple[float, float]]:
    """Difference in bits per byte from another score of the same units, and its 95 % interval."""
    difference = _bits_per_byte(nats_U - other_U, bytes_U)
    return difference, _interval_around(difference, text_error(nats_U - other_U, bytes_U))


def compare_to_best(models: Sequence[np.ndarray], bytes_U: np.ndarray) -> list[PairedResult]:
    """Compare models with the best of them, each given by the nats (S, U) of its S seeds on the same units.

    With several seeds the interval includes the variance between seeds; with one seed it doesn't.
    """
    # One seed that gives a token probability 0 makes its model's mean infinite.
    means = [seeds_SU.mean(axis=0) for seeds_SU in models]
    points = [_bits_per_byte(nats_U, bytes_U) for nats_U in means]
    seed_errors = [_seed_error(seeds_SU, bytes_U) for seeds_SU in models]
    best = int(np.argmin(points))
    results = []
    for i, (point, nats_U) in enumerate(zip(points, means, strict=True)):
        if not math.isfinite(point):
            unbounded = (math.inf, math.inf)
            results.append(PairedResult(point, unbounded, math.inf, unbounded))
            continue
        low, high = _interval_around(point, text_error(nats_U, bytes_U) + seed_errors[i])
        difference = point - points[best]
        error = text_error(nats_U - means[best], bytes_U) + seed_errors[i] + seed_errors[best]
        bounds = (0.0, 0.0) if i == best else _interval_around(difference, error)
        results.append(PairedResult(point, (max(low, 0.0), high), difference, bounds))
    return results


def _seed_error(nats_SU: np.ndarray, bytes_U: np.ndarray) -> MeanError:
    bits_S = nats_SU.sum(axis=1) / bytes_U.sum() / math.log(2)
    seeds = len(bits_S)
    if seeds == 1 or not np.isfinite(bits_S).all():
        return NO_ERROR
    return MeanError(float(bits_S.var(ddof=1)) / seeds, seeds - 1)


def _bits_per_byte(nats_U: np.ndarray, bytes_U: np.ndarray) -> float:
    return float(nats_U.sum() / bytes_U.sum() / math.log(2))


def _interval_around(center: float, error: MeanError) -> tuple[float, float]:
    half = error.half_width()
    return center - half, center + half
