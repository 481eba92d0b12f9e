"""Rank models on one text by intervals that hold for all of their differences at once.

The best model is chosen by the same scores that it is compared with, and among many equal models some differ
by chance. So each model's difference from the best has an interval that is wide enough for all pairs of
models together: with a probability of 95 %, no two equal models are called different. A single pair's
interval therefore has a higher confidence. It is found by simulating equal models whose scores are
correlated as measured, and whose errors are estimated from as few cosines and seeds (a max-t procedure:
Hothorn, Bretz & Westfall 2008, "Simultaneous inference in general parametric models"; balanced between pairs
after Beran 1988).
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
    best = int(np.argmin(points))
    results = [_infinite_loss(is_best=i == best) for i in range(len(models))]
    finite = [i for i, point in enumerate(points) if math.isfinite(point)]
    seed_errors = {i: _seed_error(models[i], bytes_U) for i in finite}
    confidence = _pair_confidence(
        means_MU=[means[i] for i in finite],
        seed_variance_M=np.array([seed_errors[i].variance for i in finite]),
        n_seeds_M=np.array([len(models[i]) for i in finite]),
        bytes_U=bytes_U,
    )
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


def _infinite_loss(is_best: bool) -> PairedResult:
    """Result of a model that gives a token of the text probability 0."""
    bounds = (math.inf, math.inf)
    if is_best:
        return PairedResult(math.inf, bounds, 0.0, (0.0, 0.0), "best")
    return PairedResult(math.inf, bounds, math.inf, bounds, "worse")


def _seed_error(nats_SU: np.ndarray, bytes_U: np.ndarray) -> MeanError:
    bits_S = np.array([bits_per_byte(nats_U, bytes_U) for nats_U in nats_SU])
    seeds = len(bits_S)
    return NO_ERROR if seeds == 1 else MeanError(float(bits_S.var(ddof=1)) / seeds, seeds - 1)


def _pair_confidence(
    means_MU: Sequence[np.ndarray], seed_variance_M: np.ndarray, n_seeds_M: np.ndarray, bytes_U: np.ndarray
) -> float:
    """Confidence of one pair's interval with which the intervals of all pairs hold together with 95 %.

    ``means_MU``: nats of M models, averaged over seeds; ``seed_variance_M``: variance of each mean score over
    seeds, in (bits per byte)².
    """
    pairs = np.triu_indices(len(means_MU), 1)
    if len(pairs[0]) < 2 or len(bytes_U) < 2:
        return CONFIDENCE
    cosines_QM = np.stack([cosine_coefficients(nats_U, bytes_U) for nats_U in means_MU], axis=1)
    # With few seeds a model's variance is too uncertain to be simulated: all models get the average.
    has_many = n_seeds_M > 1
    pooled = float((seed_variance_M * n_seeds_M)[has_many].mean()) if has_many.any() else 0.0
    equal_models = _EqualModels(
        text_root_MM=_root(cosines_QM.T @ cosines_QM / len(cosines_QM)),
        n_cosines=min(len(cosines_QM), MAX_SIMULATED_COSINES),
        seed_variance_M=np.where(has_many, pooled / n_seeds_M, 0.0),
        n_seeds_M=n_seeds_M,
    )
    rng = np.random.default_rng(0)
    draws_RP = np.concatenate([equal_models.simulate(rng)[:, *pairs] for _ in range(N_DRAWS // CHUNK)])
    draws_RP = draws_RP[:, draws_RP.any(axis=0)]  # equal scores never differ
    if draws_RP.shape[1] < 2:
        return CONFIDENCE
    # The rank of each value among its pair's values makes pairs comparable.
    ranks_RP = draws_RP.argsort(axis=0).argsort(axis=0)
    return float(np.quantile(ranks_RP.max(axis=1), CONFIDENCE) / N_DRAWS)


@dataclass(frozen=True, kw_only=True)
class _EqualModels:
    """M models with equal expected scores."""

    text_root_MM: np.ndarray
    """A matrix A; A.T @ A is the covariance of the scores over texts, in (bits per byte)²."""
    n_cosines: int
    seed_variance_M: np.ndarray
    """Variance of each score over seeds, in (bits per byte)²; 0 for a single seed."""
    n_seeds_M: np.ndarray

    def simulate(self, rng: np.random.Generator) -> np.ndarray:
        """|difference| / estimated standard error (CHUNK, M, M) of simulated scores."""
        normals = rng.normal(size=(CHUNK, self.n_cosines + 1, len(self.n_seeds_M)))
        texts = normals @ self.text_root_MM
        score_RM, cosines_RQM = texts[:, 0], texts[:, 1:]
        dof_M = np.maximum(self.n_seeds_M - 1, 1)
        seed_variance_RM = self.seed_variance_M * rng.chisquare(dof_M, size=score_RM.shape) / dof_M
        score_RM = score_RM + np.sqrt(self.seed_variance_M) * rng.normal(size=score_RM.shape)
        covariance_RMM = cosines_RQM.swapaxes(1, 2) @ cosines_RQM / self.n_cosines
        variance_RMM = _difference_variances(covariance_RMM, seed_variance_RM)
        difference_RMM = np.abs(score_RM[:, :, None] - score_RM[:, None, :])
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(variance_RMM > 0, difference_RMM / np.sqrt(variance_RMM), 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """A matrix A with A.T @ A = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T


def _difference_variances(covariance: np.ndarray, seed_variance: np.ndarray) -> np.ndarray:
    """Variances (…, M, M) of differences, from text covariances (…, M, M) and seed variances (…, M)."""
    variance = np.diagonal(covariance, axis1=-2, axis2=-1) + seed_variance
    sums = variance[..., :, None] + variance[..., None, :]
    differences = sums - 2 * covariance
    diagonal = np.arange(sums.shape[-1])
    differences[..., diagonal, diagonal] = 0.0
    # Scores that differ by a constant have a variance of rounding errors.
    return np.where(differences > 1e-10 * sums, differences, 0.0)
