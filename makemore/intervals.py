"""How far chance might have moved a score: bootstrap intervals (Efron 1979).

What is drawn again are units of text: documents, or blocks of 512 bytes of a running text. They are the
same for every tokenizer, so that models can be compared on the same draws (the paired bootstrap).
Percentiles are widened for few units (Hesterberg 2015, "What teachers should know about the bootstrap").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK_BYTES = 512
RESAMPLES = 2000
MOST_UNITS = 8192
"""More units than these are joined with their neighbours: their sums are near enough to normal."""
Z = 1.959964
"""97.5 % of a normal distribution lie below."""


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


def resampled_totals(values_KU: np.ndarray, seed: int = 0) -> np.ndarray:
    """(RESAMPLES, K) totals over units that are drawn again, the same draws for all K."""
    values_KU = _joined(values_KU)
    rng = np.random.default_rng(seed)
    units = values_KU.shape[1]
    totals_RK = np.empty((RESAMPLES, len(values_KU)))
    for i in range(RESAMPLES):
        times_U = np.bincount(rng.integers(0, units, units), minlength=units)
        totals_RK[i] = values_KU @ times_U
    return totals_RK


def _joined(values_KU: np.ndarray) -> np.ndarray:
    units = values_KU.shape[1]
    if units <= MOST_UNITS:
        return values_KU
    return np.add.reduceat(values_KU, np.arange(MOST_UNITS) * units // MOST_UNITS, axis=1)


def student_t(freedom: int) -> float:
    """97.5 % point of Student's t, by the expansion of Cornish and Fisher (1937)."""
    terms = (
        Z,
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
    )
    return sum(term / freedom**i for i, term in enumerate(terms))


def percentiles(values_R: np.ndarray, units: int) -> tuple[float, float]:
    """95 % interval from bootstrap values of a mean over so many units; endless for a single one."""
    if units < 2:
        return -math.inf, math.inf
    widened = student_t(units - 1) * math.sqrt(units / (units - 1))
    tail = 50 * math.erfc(widened / math.sqrt(2))
    low, high = np.percentile(values_R, [tail, 100 - tail])
    return float(low), float(high)


def bootstrap_interval(nats_U: np.ndarray, bytes_U: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of total nats over total bytes, in bits per byte; 0 to infinity for a single unit."""
    if not np.isfinite(nats_U).all():  # counts without smoothing: something was held impossible
        return math.inf, math.inf
    totals_RK = resampled_totals(np.stack([nats_U, bytes_U]), seed)
    low, high = percentiles(totals_RK[:, 0] / totals_RK[:, 1] / math.log(2), len(nats_U))
    return max(low, 0.0), high


def paired_difference(
    nats_U: np.ndarray, other_U: np.ndarray, bytes_U: np.ndarray, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """How many bits per byte more than another scoring of the same units, and the 95 % interval of that."""
    more_U = nats_U - other_U
    totals_RK = resampled_totals(np.stack([more_U, bytes_U]), seed)
    values_R = totals_RK[:, 0] / totals_RK[:, 1] / math.log(2)
    return float(more_U.sum() / bytes_U.sum() / math.log(2)), percentiles(values_R, len(bytes_U))


def judge(models: Sequence[np.ndarray], bytes_U: np.ndarray, seed: int = 0) -> list[Judgement]:
    """Models, each by the nats (S, U) of its S seeds on the same units, beside the best of them.

    Text is drawn again for all alike, and seeds for each model where it has several: an interval of runs
    of one seed says nothing of what another seed would have done.
    """
    nats_KU = np.concatenate(models)
    finite_K = np.isfinite(nats_KU).all(axis=1)
    totals_RK = resampled_totals(np.vstack([np.where(finite_K[:, None], nats_KU, 0.0), bytes_U]), seed)
    bits_RK = totals_RK[:, :-1] / totals_RK[:, -1:] / math.log(2)
    bits_RK[:, ~finite_K] = math.inf
    edges = np.cumsum([len(seeds) for seeds in models])[:-1]
    rng = np.random.default_rng([seed, 1])
    drawn = [_over_seeds(bits_RS, rng) for bits_RS in np.split(bits_RK, edges, axis=1)]
    points = [float(seeds.sum() / len(seeds) / bytes_U.sum() / math.log(2)) for seeds in models]
    best = int(np.argmin(points))
    units = len(bytes_U)
    return [
        Judgement(
            point,
            percentiles(values_R, units) if math.isfinite(point) else (math.inf, math.inf),
            *_difference(i == best, point - points[best], values_R, drawn[best], units),
        )
        for i, (point, values_R) in enumerate(zip(points, drawn, strict=True))
    ]


def _difference(
    itself: bool, difference: float, values_R: np.ndarray, best_R: np.ndarray, units: int
) -> tuple[float, tuple[float, float]]:
    if itself:
        return 0.0, (0.0, 0.0)
    if not math.isfinite(difference):
        return math.inf, (math.inf, math.inf)
    return difference, percentiles(values_R - best_R, units)


def _over_seeds(bits_RS: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(R,) means over seeds drawn again, spread as far as so few seeds leave open."""
    seeds = bits_RS.shape[1]
    mean_R = bits_RS.mean(axis=1)
    if seeds == 1 or not np.isfinite(mean_R).all():
        return mean_R
    picks = rng.integers(0, seeds, bits_RS.shape)
    drawn_R = np.take_along_axis(bits_RS, picks, axis=1).mean(axis=1)
    return mean_R + math.sqrt(seeds / (seeds - 1)) * (drawn_R - mean_R)
