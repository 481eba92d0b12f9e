"""How far chance might have moved a score: bootstrap intervals (Efron 1979).

What is drawn again are units of text: documents, or blocks of 512 bytes of a running text. They are the
same for every tokenizer, so that models can be compared on the same draws (the paired bootstrap). Where
neighbours are alike, as scenes of a play are, runs of them are drawn together (the circular block bootstrap,
Politis & Romano 1992), as long as Politis & White (2004, corrected by Patton et al. 2009) find best.
Percentiles are widened for few of them (Hesterberg 2015, "What teachers should know about the bootstrap").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK_BYTES = 512
RESAMPLES = 2000
LEAST_UNITS = 16
"""Fewer can't say how alike neighbours are."""
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


def resampled_totals(values_KU: np.ndarray, run: int = 1, seed: int = 0) -> np.ndarray:
    """(RESAMPLES, K) totals over units that are drawn again in runs of so many neighbours, the same draws
    for all K."""
    rng = np.random.default_rng(seed)
    units = values_KU.shape[1]
    totals_RK = np.empty((RESAMPLES, len(values_KU)))
    for i in range(RESAMPLES):
        begins = rng.integers(0, units, -(-units // run))
        drawn = (begins[:, None] + np.arange(run)).ravel()[:units] % units
        totals_RK[i] = values_KU @ np.bincount(drawn, minlength=units)
    return totals_RK


def run_length(values_U: np.ndarray) -> int:
    """How many neighbours to draw together, from how far they resemble each other."""
    units = len(values_U)
    if units < LEAST_UNITS:
        return 1
    centred_U = values_U - values_U.mean()
    insignificant = max(5, math.ceil(math.sqrt(math.log10(units))))
    most = math.ceil(math.sqrt(units)) + insignificant
    likeness = np.array([centred_U[: units - k] @ centred_U[k:] / units for k in range(most + 1)])
    if likeness[0] <= 1e-12 * max(1.0, float(values_U @ values_U) / units):
        return 1
    alike = np.abs(likeness[1:] / likeness[0]) >= 2 * math.sqrt(math.log10(units) / units)
    reach = _reach(alike, insignificant)
    lags = np.arange(-min(2 * reach, most), min(2 * reach, most) + 1)
    if len(lags) == 1:
        return 1
    weights = np.clip(2 * (1 - np.abs(lags) / lags[-1]), 0, 1)
    weighted = weights * likeness[np.abs(lags)]
    spread = float(weighted.sum())
    tilt = float((np.abs(lags) * weighted).sum())
    best = (2 * tilt**2 / max(4 / 3 * spread**2, 1e-300)) ** (1 / 3) * units ** (1 / 3)
    return max(1, round(min(best, 3 * math.sqrt(units), units / 3)))


def _reach(alike: np.ndarray, insignificant: int) -> int:
    """The lag after which so many lags show nothing; the last that shows something where there is none."""
    for lag in range(len(alike) - insignificant + 1):
        if not alike[lag : lag + insignificant].any():
            return lag
    return int(np.flatnonzero(alike)[-1]) + 1


def joined(values_KU: np.ndarray) -> np.ndarray:
    """Units (K, U), those of one place with their neighbours where there are too many."""
    units = values_KU.shape[1]
    if units <= MOST_UNITS:
        return values_KU
    return np.add.reduceat(values_KU, np.arange(MOST_UNITS) * units // MOST_UNITS, axis=1)


def student_t(freedom: float) -> float:
    """97.5 % point of Student's t, by the expansion of Cornish and Fisher (1937)."""
    terms = (
        Z,
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
    )
    return sum(term / freedom**i for i, term in enumerate(terms))


def percentiles(values_R: np.ndarray, units: float) -> tuple[float, float]:
    """95 % interval from bootstrap values of a mean over so many independent units; endless below two."""
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
    values_KU = joined(np.stack([nats_U, bytes_U]))
    run = run_length(_surplus(*values_KU))
    totals_RK = resampled_totals(values_KU, run, seed)
    low, high = percentiles(totals_RK[:, 0] / totals_RK[:, 1] / math.log(2), values_KU.shape[1] / run)
    return max(low, 0.0), high


def _surplus(nats_U: np.ndarray, bytes_U: np.ndarray) -> np.ndarray:
    """Nats of each unit beyond what its bytes cost on average."""
    return nats_U - nats_U.sum() / bytes_U.sum() * bytes_U


def paired_difference(
    nats_U: np.ndarray, other_U: np.ndarray, bytes_U: np.ndarray, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """How many bits per byte more than another scoring of the same units, and the 95 % interval of that."""
    values_KU = joined(np.stack([nats_U - other_U, bytes_U]))
    run = run_length(_surplus(*values_KU))
    totals_RK = resampled_totals(values_KU, run, seed)
    values_R = totals_RK[:, 0] / totals_RK[:, 1] / math.log(2)
    difference = float((nats_U - other_U).sum() / bytes_U.sum() / math.log(2))
    return difference, percentiles(values_R, values_KU.shape[1] / run)


def judge(models: Sequence[np.ndarray], bytes_U: np.ndarray, seed: int = 0) -> list[Judgement]:
    """Models, each by the nats (S, U) of its S seeds on the same units, beside the best of them.

    Text is drawn again for all alike. Where a model has several seeds, the mean over all seeds is meant, and
    its uncertainty is added; an interval of one seed says nothing of what another would have done.
    """
    nats_KU = np.concatenate(models)
    finite_K = np.isfinite(nats_KU).all(axis=1)
    values_KU = joined(np.vstack([np.where(finite_K[:, None], nats_KU, 0.0), bytes_U]))
    run = max(run_length(_surplus(nats_U, values_KU[-1])) for nats_U in values_KU[:-1])
    totals_RK = resampled_totals(values_KU, run, seed)
    bits_RK = totals_RK[:, :-1] / totals_RK[:, -1:] / math.log(2)
    bits_RK[:, ~finite_K] = math.inf
    edges = np.cumsum([len(seeds) for seeds in models])[:-1]
    rng = np.random.default_rng([seed, 1])
    points_S = [seeds.sum(axis=1) / bytes_U.sum() / math.log(2) for seeds in models]
    drawn = [
        bits_RS.mean(axis=1) + _seed_noise(bits_S, rng)
        for bits_RS, bits_S in zip(np.split(bits_RK, edges, axis=1), points_S, strict=True)
    ]
    points = [float(bits_S.mean()) for bits_S in points_S]
    best = int(np.argmin(points))
    units = values_KU.shape[1] / run
    return [
        Judgement(
            point,
            percentiles(values_R, units) if math.isfinite(point) else (math.inf, math.inf),
            *_difference(i == best, point - points[best], values_R, drawn[best], units),
        )
        for i, (point, values_R) in enumerate(zip(points, drawn, strict=True))
    ]


def _difference(
    itself: bool, difference: float, values_R: np.ndarray, best_R: np.ndarray, units: float
) -> tuple[float, tuple[float, float]]:
    if itself:
        return 0.0, (0.0, 0.0)
    if not math.isfinite(difference):
        return math.inf, (math.inf, math.inf)
    return difference, percentiles(values_R - best_R, units)


def _seed_noise(bits_S: np.ndarray, rng: np.random.Generator) -> np.ndarray | float:
    """(R,) how far the mean over all seeds there are may be from the mean over these, by Student's t."""
    seeds = len(bits_S)
    if seeds == 1 or not np.isfinite(bits_S).all():
        return 0.0
    return float(bits_S.std(ddof=1)) / math.sqrt(seeds) * rng.standard_t(seeds - 1, RESAMPLES)
