"""Rank models on one text by intervals that hold for all of their differences at once.

The best model is chosen by the same scores that it is compared with, and among many equal models some differ
by chance. So each model's difference from the best has an interval that is wide enough for all pairs of
models together: with a probability of 95 %, no two equal models are called different. The confidence that a
single pair needs for that comes from a simulation of equal models whose scores are correlated as measured,
and whose errors are estimated from as few cosines and seeds (a max-t procedure: Hothorn, Bretz & Westfall
2008, "Simultaneous inference in general parametric models"; balanced between pairs after Beran 1988).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from makemore.evaluation.intervals import (
    CONFIDENCE,
    NO_ERROR,
    MeanError,
    bits_per_byte,
    cosine_coefficients,
    interval_around,
    text_error,
)

N_DRAWS = 10_000
"""Simulated comparisons."""
CHUNK = 1000
MAX_SIMULATED_COSINES = 120
"""With more cosines than this, their number no longer matters for the critical values."""

Verdict = Literal["best", "worse", "within noise", "seeds unknown", "text too short"]


@dataclass(frozen=True)
class PairedResult:
    """A model's bits per byte, averaged over its seeds, compared with the best model's."""

    bits_per_byte: float
    ci95: tuple[float, float]
    difference: float
    """Difference from the best model, in bits per byte; 0 for the best model itself."""
    difference_ci95: tuple[float, float]
    """Simultaneous interval; with a single seed it covers the variation between texts only."""
    verdict: Verdict
    """``seeds unknown``: worse on this text, but other seeds of the two models could rank otherwise."""

    @property
    def beyond_noise(self) -> bool:
        """Whether the model is worse than the best for other texts and seeds, too."""
        return self.verdict == "worse"


@dataclass(frozen=True)
class _Errors:
    """Errors of M models' mean scores, in bits per byte."""

    cosines_QM: np.ndarray
    """Cosine coefficients; each has the variance of a score over texts."""
    seed_variance_M: np.ndarray
    n_seeds_M: np.ndarray

    @property
    def covariance_MM(self) -> np.ndarray:
        """Covariance of the scores over texts."""
        return self.cosines_QM.T @ self.cosines_QM / len(self.cosines_QM)


def compare_to_best(models: Sequence[np.ndarray], bytes_U: np.ndarray) -> list[PairedResult]:
    """Compare models with the best of them.

    Args:
        models: per model, the nats (S, U) of its S seeds on the same U units.
        bytes_U: bytes of each unit.

    Returns:
        One result per model, in the same order.
    """
    # One seed that gives a token probability 0 makes its model's mean infinite.
    means = [seeds_SU.mean(axis=0) for seeds_SU in models]
    points = [bits_per_byte(nats_U, bytes_U) for nats_U in means]
    finite = [i for i, point in enumerate(points) if math.isfinite(point)]
    best = int(np.argmin(points))
    results = [_unbounded(point) for point in points]
    confidence = _pair_confidence([models[i] for i in finite], bytes_U)
    seed_errors = {i: _seed_error(models[i], bytes_U) for i in finite}
    for i in finite:
        error = text_error(means[i], bytes_U) + seed_errors[i]
        low, high = interval_around(points[i], error.half_width())
        difference = points[i] - points[best]
        error = text_error(means[i] - means[best], bytes_U) + seed_errors[i] + seed_errors[best]
        bounds = interval_around(difference, error.half_width(confidence))
        n_seeds = min(len(models[i]), len(models[best]))
        verdict = "best" if i == best else _verdict(bounds, n_seeds)
        if i == best:
            bounds = (0.0, 0.0)
        results[i] = PairedResult(points[i], (max(low, 0.0), high), difference, bounds, verdict)
    return results


def _verdict(bounds: tuple[float, float], n_seeds: int) -> Verdict:
    if math.isinf(bounds[0]):
        return "text too short"
    if bounds[0] <= 0:
        return "within noise"
    return "worse" if n_seeds > 1 else "seeds unknown"


def _unbounded(point: float) -> PairedResult:
    bounds = (math.inf, math.inf)
    return PairedResult(point, bounds, math.inf, bounds, "worse")


def _seed_error(nats_SU: np.ndarray, bytes_U: np.ndarray) -> MeanError:
    bits_S = nats_SU.sum(axis=1) / bytes_U.sum() / math.log(2)
    seeds = len(bits_S)
    return NO_ERROR if seeds == 1 else MeanError(float(bits_S.var(ddof=1)) / seeds, seeds - 1)


def _pair_confidence(models: Sequence[np.ndarray], bytes_U: np.ndarray) -> float:
    """Confidence of each pair's interval with which those of all pairs hold together with 95 %."""
    pairs = np.triu_indices(len(models), 1)
    if len(pairs[0]) < 2 or len(bytes_U) < 2:
        return CONFIDENCE
    means = [nats_SU.mean(axis=0) for nats_SU in models]
    n_seeds_M = np.array([len(nats_SU) for nats_SU in models])
    variance_M = np.array([_seed_error(nats_SU, bytes_U).variance for nats_SU in models]) * n_seeds_M
    # With few seeds a model's variance is too uncertain to be simulated: all models get the average.
    pooled = float(variance_M[n_seeds_M > 1].mean()) if (n_seeds_M > 1).any() else 0.0
    errors = _Errors(
        cosines_QM=np.stack([cosine_coefficients(nats_U, bytes_U) for nats_U in means], axis=1),
        seed_variance_M=np.where(n_seeds_M > 1, pooled / n_seeds_M, 0.0),
        n_seeds_M=n_seeds_M,
    )
    rng = np.random.default_rng(0)
    draws_RP = np.concatenate([_simulate(errors, rng)[:, *pairs] for _ in range(N_DRAWS // CHUNK)])
    # The rank of each value among its pair's values makes pairs comparable.
    ranks_RP = draws_RP.argsort(axis=0).argsort(axis=0)
    return float(np.quantile(ranks_RP.max(axis=1), CONFIDENCE) / N_DRAWS)


def _simulate(errors: _Errors, rng: np.random.Generator) -> np.ndarray:
    """|difference| / estimated standard error, (CHUNK, M, M), of simulated models that are equal."""
    n_cosines = min(len(errors.cosines_QM), MAX_SIMULATED_COSINES)
    normals = rng.normal(size=(CHUNK, n_cosines + 1, len(errors.seed_variance_M)))
    texts = normals @ _root(errors.covariance_MM)
    score_RM, cosines_RQM = texts[:, 0], texts[:, 1:]
    dof_M = np.maximum(errors.n_seeds_M - 1, 1)
    seed_variance_RM = errors.seed_variance_M * rng.chisquare(dof_M, size=score_RM.shape) / dof_M
    score_RM = score_RM + np.sqrt(errors.seed_variance_M) * rng.normal(size=score_RM.shape)
    gram_RMM = cosines_RQM.swapaxes(1, 2) @ cosines_RQM / n_cosines
    variances_RMM = _of_pairs(gram_RMM, seed_variance_RM)
    differences_RMM = np.abs(score_RM[:, :, None] - score_RM[:, None, :])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variances_RMM > 0, differences_RMM / np.sqrt(variances_RMM), 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """A matrix A with A.T @ A = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T


def _of_pairs(covariance: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Variances (…, M, M) of differences, from text covariances (…, M, M) and seed variances (…, M)."""
    own = np.diagonal(covariance, axis1=-2, axis2=-1) + variance
    pairs = own[..., :, None] + own[..., None, :] - 2 * covariance
    diagonal = np.arange(pairs.shape[-1])
    pairs[..., diagonal, diagonal] = 0.0
    # Scores that differ by a constant have a variance of rounding errors.
    return np.where(pairs > 1e-10 * (own[..., :, None] + own[..., None, :]), pairs, 0.0)
