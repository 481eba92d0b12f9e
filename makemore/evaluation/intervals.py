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
from dataclasses import dataclass

import numpy as np

BLOCK_BYTES = 512
COSINE_FACTOR = 0.3
"""U units use this times U^(2/3) cosine coefficients."""
MIN_COSINES = 3
"""Minimum number of coefficients; fewer make the intervals uselessly wide."""
MIN_EFFECTIVE_UNITS = 10
"""A text with fewer independent units is too short to estimate its variability: there is no interval."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class MeanError:
    """Variance of a mean, in its unit squared, and the degrees of freedom of the estimate."""

    variance: float
    dof: float

    def half_width(self, confidence: float = CONFIDENCE) -> float:
        """Half-width of the confidence interval; infinite if the variance is unknown."""
        return math.sqrt(self.variance) * student_t_quantile(self.dof, confidence)

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


def student_t_quantile(dof: float, confidence: float) -> float:
    """The t such that Student's |T| is at most t with probability ``confidence``.

    With t = √ν tan θ, the density is cos θ to the power ν - 1, which we integrate numerically.
    """
    dof = min(max(dof, 1.0), 1e6)
    max_angle = min(math.pi / 2, 40 / math.sqrt(dof))  # the density beyond is negligible
    angles = np.linspace(0, max_angle, 20_001)
    density = np.cos(angles) ** (dof - 1)
    mass = np.append(0.0, np.cumsum((density[1:] + density[:-1]) / 2))
    return math.sqrt(dof) * math.tan(np.interp(confidence, mass / mass[-1], angles))


def effective_units(residual_U: np.ndarray) -> float:
    """Number of independent units that would determine a mean as well: U (1 - r) / (1 + r) for a lag-1
    autocorrelation r (Bayley & Hammersley 1946), corrected for its bias in short series (Kendall 1954)."""
    units, squares = len(residual_U), float(residual_U @ residual_U)
    if units < 2 or not squares:
        return float(units)
    r = float(residual_U[1:] @ residual_U[:-1]) / squares
    r = min(max(r + (1 + 4 * r) / units, 0.0), 0.99)
    return units * (1 - r) / (1 + r)


def residuals(nats_U: np.ndarray, bytes_U: np.ndarray) -> np.ndarray:
    """Each unit's nats minus the average nats of as many bytes: the ratio of totals, linearised."""
    residual_U = nats_U - nats_U.sum() / bytes_U.sum() * bytes_U
    is_rounding = np.linalg.norm(residual_U) <= 1e-10 * np.linalg.norm(nats_U)
    return np.zeros(len(nats_U)) if is_rounding else residual_U


def cosine_coefficients(nats_U: np.ndarray, bytes_U: np.ndarray) -> np.ndarray:
    """Low-frequency cosine coefficients (Q,) in bits per byte, linear in ``nats_U``. The expected square of
    each is about the variance of total nats over total bytes. U must be at least 2."""
    units = len(nats_U)
    residual_U = residuals(nats_U, bytes_U)
    n = min(units - 1, max(MIN_COSINES, round(COSINE_FACTOR * units ** (2 / 3))))
    # DCT-II, by an FFT of the series followed by its mirror image.
    fourier = np.fft.rfft(np.concatenate([residual_U, residual_U[::-1]]))[1 : n + 1]
    phases = np.exp(-0.5j * math.pi * np.arange(1, n + 1) / units)
    cosines = (fourier * phases).real / math.sqrt(2)  # each has the variance of the sum
    return cosines / (float(bytes_U.sum()) * math.log(2))


def text_error(nats_U: np.ndarray, bytes_U: np.ndarray) -> MeanError:
    """Sampling error of total nats over total bytes, in bits per byte; UNKNOWN if the text is too short."""
    if effective_units(residuals(nats_U, bytes_U)) < MIN_EFFECTIVE_UNITS:
        return UNKNOWN
    cosines = cosine_coefficients(nats_U, bytes_U)
    return MeanError(float(np.mean(cosines**2)), len(cosines))


def text_interval(nats_U: np.ndarray, bytes_U: np.ndarray) -> tuple[float, float]:
    """95 % interval of total nats over total bytes, in bits per byte: (0, inf) if the text is too short,
    (inf, inf) if a token has probability 0."""
    if not np.isfinite(nats_U).all():  # unsmoothed counts gave a token probability 0
        return math.inf, math.inf
    low, high = interval_around(bits_per_byte(nats_U, bytes_U), text_error(nats_U, bytes_U).half_width())
    return max(low, 0.0), high


def paired_difference(
    nats_U: np.ndarray, other_U: np.ndarray, bytes_U: np.ndarray
) -> tuple[float, tuple[float, float]]:
    """Difference in bits per byte from another score of the same units, and its 95 % interval."""
    difference = bits_per_byte(nats_U - other_U, bytes_U)
    return difference, interval_around(difference, text_error(nats_U - other_U, bytes_U).half_width())


def bits_per_byte(nats_U: np.ndarray, bytes_U: np.ndarray) -> float:
    """Total nats over total bytes, in bits."""
    return float(nats_U.sum() / bytes_U.sum() / math.log(2))


def interval_around(center: float, half_width: float) -> tuple[float, float]:
    """Lower and upper bound."""
    return center - half_width, center + half_width
