"""Simultaneous comparisons against Student's t, the studentized range, and cases with a known answer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from makemore.evaluation.intervals import paired_difference
from makemore.evaluation.ranking import compare_to_best
from tests.evaluation.test_intervals import BITS, normal_units


def equal_models(n_models: int, n_seeds: int, units: int, text: float, seed: float) -> list[np.ndarray]:
    """Nats (S, U) of models with independent errors of these sizes, on units of 100 bytes."""
    rng = np.random.default_rng(3)
    bits = 2 + rng.normal(0, text, (n_models, 1, units)) + rng.normal(0, seed, (n_models, n_seeds, 1))
    return list(bits * 100 * BITS)


def widths_in_errors(models: list[np.ndarray], errors: list[float]) -> list[float]:
    """Half-widths of the intervals of differences, in standard errors of each model's score."""
    results = compare_to_best(models, np.full(models[0].shape[1], 100))
    best = next(i for i, result in enumerate(results) if result.verdict == "best")
    return [
        (result.difference_ci95[1] - result.difference_ci95[0]) / 2 / math.hypot(errors[i], errors[best])
        for i, result in enumerate(results)
        if i != best
    ]


def test_two_models_get_students_t():
    """Seeds only, three each with the same spread: 4 degrees of freedom."""
    bits_S = np.array([2.0, 2.02, 2.07])
    models = [np.repeat(bits_S[:, None] + shift, 200, axis=1) * 100 * BITS for shift in (0.0, 0.5)]
    error = bits_S.std(ddof=1) / math.sqrt(3)
    assert widths_in_errors(models, [error, error]) == pytest.approx([2.7764], rel=1e-4)


@pytest.mark.parametrize(("n_models", "quantile"), [(3, 3.36), (5, 3.92), (10, 4.56)])
def test_many_models_get_the_studentized_range(n_models, quantile):
    """Upper 5 % points of the studentized range with 120 degrees of freedom, divided by the root of 2."""
    models = equal_models(n_models, 1, units=100_000, text=0.3, seed=0.0)
    error = 0.3 / math.sqrt(100_000)
    assert np.mean(widths_in_errors(models, [error] * n_models)) == pytest.approx(
        quantile / math.sqrt(2), rel=0.06
    )


def test_paired_difference_detects_what_two_intervals_miss():
    nats_U, bytes_U = normal_units(500)
    rng = np.random.default_rng(9)
    worse_U = nats_U + bytes_U * rng.normal(0.01, 0.02, 500) * BITS
    best, other = compare_to_best([np.stack([nats_U] * 2), np.stack([worse_U] * 2)], bytes_U)
    assert (best.verdict, best.difference) == ("best", 0)
    assert other.ci95[0] < best.ci95[1]  # the separate intervals overlap
    assert other.beyond_noise
    difference, ci95 = paired_difference(worse_U, nats_U, bytes_U)
    assert other.difference == pytest.approx(difference)
    width = other.difference_ci95[1] - other.difference_ci95[0]
    assert width == pytest.approx(ci95[1] - ci95[0], rel=1e-9)


def test_equal_scores_have_no_difference():
    nats_U, bytes_U = normal_units(100)
    _, twin = compare_to_best([nats_U[None], nats_U[None]], bytes_U)
    assert twin.difference == 0
    assert twin.difference_ci95 == (0.0, 0.0)
    assert twin.verdict == "within noise"


def test_seeds_widen_the_interval_of_a_score_by_student_t():
    bytes_U = np.full(200, 100)
    bits_S = np.array([2.0, 2.02, 2.07])
    (result,) = compare_to_best([bits_S[:, None] * bytes_U * BITS], bytes_U)
    half_width = 4.3027 * bits_S.std(ddof=1) / math.sqrt(3)
    assert result.bits_per_byte == pytest.approx(bits_S.mean())
    assert (result.ci95[1] - result.ci95[0]) / 2 == pytest.approx(half_width, rel=1e-4)


def test_variation_between_seeds_is_not_a_difference():
    nats_U, bytes_U = normal_units(400)
    lucky = np.stack([nats_U, nats_U + 0.05 * bytes_U, nats_U + 0.1 * bytes_U])
    other = np.stack([nats_U + 0.01 * bytes_U, nats_U + 0.06 * bytes_U, nats_U + 0.12 * bytes_U])
    assert compare_to_best([lucky, other], bytes_U)[1].verdict == "within noise"


@pytest.mark.parametrize("seeds", [(1, 1), (5, 1), (1, 5)])
def test_a_single_seed_says_nothing_about_other_seeds(seeds):
    nats_U, bytes_U = normal_units(400)
    rows = [np.stack([nats_U + shift * bytes_U] * n) for shift, n in zip((0.0, 0.3), seeds, strict=True)]
    best, other = compare_to_best(rows, bytes_U)
    assert (best.verdict, other.verdict) == ("best", "seeds unknown")
    assert other.difference_ci95[0] > 0
    assert not other.beyond_noise


def test_infinite_loss_ranks_last():
    nats_U, bytes_U = normal_units(50)
    broken_U = nats_U.copy()
    broken_U[7] = math.inf
    broken, fine = compare_to_best([broken_U[None], nats_U[None]], bytes_U)
    assert fine.difference == 0
    assert broken.bits_per_byte == broken.difference == broken.ci95[0] == math.inf


def test_a_short_text_gives_unbounded_intervals():
    for units in (1, 9):
        rng = np.random.default_rng(units)
        scores = [rng.normal(mean, 0.1, (1, units)).repeat(2, axis=0) for mean in (5.0, 6.0)]
        best, other = compare_to_best(scores, np.full(units, 9))
        assert (best.ci95, other.difference_ci95) == ((0.0, math.inf), (-math.inf, math.inf))
        assert (best.verdict, other.verdict) == ("best", "text too short")


def test_copies_of_a_model_do_not_widen_the_intervals():
    models = equal_models(4, 1, units=200, text=0.1, seed=0.0)
    several = compare_to_best(models, np.full(200, 100))
    with_copies = compare_to_best([*models, models[0], models[0]], np.full(200, 100))
    widths = [np.ptp([r.difference_ci95 for r in results[:4]], axis=1) for results in (several, with_copies)]
    np.testing.assert_allclose(widths[1], widths[0], rtol=0.02)


@pytest.mark.parametrize("n_models", [1, 3])
def test_one_model_is_best_even_if_all_losses_are_infinite(n_models):
    best, *others = compare_to_best([np.full((1, 20), math.inf)] * n_models, np.full(20, 9))
    assert (best.verdict, best.difference) == ("best", 0)
    assert all((other.verdict, other.difference) == ("worse", math.inf) for other in others)
